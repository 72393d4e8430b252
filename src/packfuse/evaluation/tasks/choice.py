"""Multiple choice by likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class ChoiceTask(Task):
    """The option that the system finds likeliest, per byte and not per byte.

    Fields: `question`, options `A`, `B`, ..., and the right letter in `answer`. Lines whose answer
    names an option without a text are left out.
    """

    name: ClassVar[str] = "choice"

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Options with letters."""
        return {"question", "A", "B"} <= set(fields)

    def read(self, fields: Fields) -> Question | None:
        """`Question: ...` and `Answer:`, then each option after a space, as lm-eval asks PIQA."""
        found = fields.choice()
        if found is None:
            return None
        options, answer = found
        prompt = self.ask(fields)
        texts = tuple(f" {text}" for text in options.values())
        gold = list(options).index(answer)
        return Question(fields.where, prompt, texts, gold, solution=texts[gold])

    def judge(self, question: Question, found: Likelihoods) -> Outcome:
        """Right by log-likelihood per byte, and by log-likelihood alone."""
        sizes = [len(option.encode()) for option in question.options]
        best = int(np.argmax(np.asarray(found.logps) / sizes))
        return found.outcome(question.gold).model_copy(
            update={
                "answer": question.options[best].strip(),
                "right": best == question.gold,
                "raw": int(np.argmax(found.logps)) == question.gold,
            }
        )
