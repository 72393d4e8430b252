"""Problems whose answer is a number, worked out in writing."""

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
    """The number after `####`, or else the last one, of a written solution (GSM8K).

    Fields: `question`, and in `answer` a solution that ends in the number.
    """

    name: ClassVar[str] = "number"
    generates: ClassVar[bool] = True
    verdict: ClassVar[str] = "right number"
    stop: ClassVar[tuple[str, ...]] = ("\nQuestion:",)

    max_tokens: int = Field(default=256, ge=1)
    """Longest solution, tokens."""

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """A question with a text that holds a number."""
        return "question" in fields and isinstance(answer, str) and last_number(answer) is not None

    def read(self, fields: Fields) -> Question:
        """`Question: ...` and `Answer:`."""
        solution = fields.text("answer").strip()
        number = last_number(solution)
        if number is None:
            raise DataError(f"{fields.where}: field 'answer' holds no number: {solution!r}")
        prompt = self.ask(fields)
        return Question(fields.where, prompt, accepted=(str(number),), solution=f" {solution}")

    def mark(self, question: Question, text: str) -> Outcome:
        """Right if the numbers are equal."""
        found = last_number(text)
        right = found is not None and found == Decimal(question.accepted[0])
        answer = "" if found is None else str(found)
        return Outcome(answer=answer, right=right, length=len(text.strip()))


def last_number(text: str) -> Decimal | None:
    """The first number after the last `####`, or else the last one of all.

    Example:
        >>> last_number("5 + 7 = 12 apples, so $1,012.50")
        Decimal('1012.50')
    """
    _, mark, after = text.rpartition("####")
    marked = _NUMBER.search(after) if mark else None
    found = [marked.group()] if marked else _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
