"""Multiple choice by the letter that is written, as the papers do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class Letter(Task):
    """All options are shown, and the first token written has to be the right letter.

    That is how PackLLM's and UniTE's code scores ARC, MMLU and PIQA. Fields as for `choice`.
    """

    name: ClassVar[str] = "letter"

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Never chosen by itself: `choice` takes the same files."""
        return False

    def read(self, fields: Fields) -> Question | None:
        """The question, a line for each option, and `Answer:`."""
        found = fields.choice()
        if found is None:
            return None
        options, answer = found
        lines = [f"{letter}. {text}" for letter, text in options.items()]
        prompt = self.ask(fields, *lines)
        gold = list(options).index(answer)
        return Question(
            fields.where, prompt, tuple(f" {o}" for o in options), gold, solution=f" {answer}"
        )

    def judge(self, question: Question, found: Likelihoods) -> Outcome:
        """Right if the first token is the letter; `raw`: if it is the likeliest of the letters."""
        written = found.first.strip()
        return found.outcome(question.gold).model_copy(
            update={
                "answer": written,
                "right": written == question.options[question.gold].strip(),
                "raw": int(np.argmax(found.logps)) == question.gold,
            }
        )
