"""Multiple choice by the letter of the first token, the format of the papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class Letter(Task):
    """The prompt lists all options, and the first token has to be the right letter.

    The published code of PackLLM and UniTE scores ARC, MMLU and PIQA in the same way. Fields
    as for `choice`.
    """

    name: ClassVar[str] = "letter"

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Never inferred from the fields: `choice` takes the same files."""
        return False

    def read(self, fields: Fields) -> Question | None:
        """The prompt is the question, a line for each option, and `Answer:`.

        Raises:
            DataError: if a field is missing or is not a text.
        """
        choice = fields.choice()
        if choice is None:
            return None
        options, answer = choice
        lines = [f"{letter}. {text}" for letter, text in options.items()]
        prompt = self.format_prompt(fields, *lines)
        gold = list(options).index(answer)
        return Question(
            fields.where,
            prompt,
            tuple(f" {letter}" for letter in options),
            gold,
            solution=f" {answer}",
        )

    def score_options(self, question: Question, likelihoods: Likelihoods) -> Outcome:
        """`right` if the first token is the letter, `raw` if it is the most probable letter."""
        first = likelihoods.first.strip()
        return likelihoods.outcome(question.gold).model_copy(
            update={
                "answer": first,
                "right": first == question.options[question.gold].strip(),
                "raw": int(np.argmax(likelihoods.logps)) == question.gold,
            }
        )
