"""Problems whose generated solution ends in a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from packfuse.errors import DataError
from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Task

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?")


class Number(Task):
    """The number after `####`, or else the last number, of a generated solution (GSM8K).

    Fields: `question`, and in `answer` a solution that ends in the number.
    """

    name: ClassVar[str] = "number"
    generates: ClassVar[bool] = True
    metric: ClassVar[str] = "right number"
    stop: ClassVar[tuple[str, ...]] = ("\nQuestion:",)

    max_tokens: int = Field(default=256, ge=1)
    """Longest solution, tokens."""

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether the file has a question and an answer that contains a number."""
        return "question" in fields and isinstance(answer, str) and last_number(answer) is not None

    def read(self, fields: Fields) -> Question:
        """The prompt is `Question: ...` and `Answer:`.

        Raises:
            DataError: if a field is missing or the answer contains no number.
        """
        solution = fields.text("answer").strip()
        number = last_number(solution)
        if number is None:
            raise DataError(f"{fields.where}: field 'answer' holds no number: {solution!r}")
        prompt = self.format_prompt(fields)
        return Question(fields.where, prompt, accepted=(str(number),), solution=f" {solution}")

    def grade_text(self, question: Question, text: str) -> Outcome:
        """Right if the numbers are equal."""
        number = last_number(text)
        right = number is not None and number == Decimal(question.accepted[0])
        answer = "" if number is None else str(number)
        return Outcome(answer=answer, right=right, length=len(text.strip()))

    def ballot(self, text: str) -> str:
        """The number; nothing for a text without one."""
        number = last_number(text)
        return "" if number is None else str(number.normalize())


def last_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or else the last number of the text.

    Example:
        >>> last_number("5 + 7 = 12 apples, so $1,012.50")
        Decimal('1012.50')
    """
    _, separator, after = text.rpartition("####")
    match = _NUMBER.search(after) if separator else None
    numbers = [match.group()] if match else _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
