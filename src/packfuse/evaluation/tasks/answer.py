"""Short answers, compared with the accepted ones."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import ClassVar

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


class AnswerTask(Task):
    """Exact match of one written line, but for case, articles, punctuation and spaces.

    Fields: `question`, and in `answer` a text or a list of accepted texts.
    """

    name: ClassVar[str] = "answer"
    generates: ClassVar[bool] = True
    verdict: ClassVar[str] = "exact match"
    stop: ClassVar[tuple[str, ...]] = ("\n",)

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """A question with a list of answers."""
        return "question" in fields and isinstance(answer, list)

    def read(self, fields: Fields) -> Question:
        """`Question: ...` and `Answer:`."""
        accepted = fields.texts("answer")
        prompt = self.ask(fields)
        return Question(fields.where, prompt, accepted=tuple(accepted), solution=f" {accepted[0]}")

    def mark(self, question: Question, text: str) -> Outcome:
        """Right if it is one of the accepted answers."""
        right = plain(text) in {plain(answer) for answer in question.accepted}
        return Outcome(answer=text.strip(), right=right, length=len(text.strip()))


def plain(text: str) -> str:
    """A text without case, punctuation, articles and extra spaces (the rule of SQuAD).

    Example:
        >>> plain("The  U.S.A.")
        'usa'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())
