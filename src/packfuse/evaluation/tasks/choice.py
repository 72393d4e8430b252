"""Multiple choice by log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class ChoiceTask(Task):
    """The option of highest log-likelihood, with and without normalization by its bytes.

    Fields: `question`, options `A`, `B`, ..., and the right letter in `answer`. Lines whose answer
    names an option without a text are skipped.
    """

    name: ClassVar[str] = "choice"

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether the file has a question and options by letter."""
        return {"question", "A", "B"} <= set(fields)

    def read(self, fields: Fields) -> Question | None:
        """`Question: ...` and `Answer:`, then each option after a space: lm-eval's format of PIQA.

        Raises:
            DataError: if a field is missing or is not a text.
        """
        choice = fields.choice()
        if choice is None:
            return None
        options, answer = choice
        prompt = self.format_prompt(fields)
        texts = tuple(f" {text}" for text in options.values())
        gold = list(options).index(answer)
        return Question(fields.where, prompt, texts, gold, solution=texts[gold])

    def score_options(self, question: Question, likelihoods: Likelihoods) -> Outcome:
        """`right` by log-likelihood per byte (lm-eval's acc_norm), `raw` without normalization."""
        sizes = [len(option.encode()) for option in question.options]
        best = int(np.argmax(np.asarray(likelihoods.logps) / sizes))
        return likelihoods.outcome(question.gold).model_copy(
            update={
                "answer": question.options[best].strip(),
                "right": best == question.gold,
                "raw": int(np.argmax(likelihoods.logps)) == question.gold,
            }
        )
