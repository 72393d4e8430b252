"""Short generated answers, compared with the accepted ones."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import ClassVar

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class AnswerTask(Task):
    """Exact match of one generated line; case, articles, punctuation and spaces are ignored.

    Fields: `question`, and in `answer` a text or a list of accepted texts.
    """

    name: ClassVar[str] = "answer"
    generates: ClassVar[bool] = True
    metric: ClassVar[str] = "exact match"
    stop: ClassVar[tuple[str, ...]] = ("\n",)

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether the file has a question with a list of answers."""
        return "question" in fields and isinstance(answer, list)

    def read(self, fields: Fields) -> Question:
        """The prompt is `Question: ...` and `Answer:`.

        Raises:
            DataError: if a field is missing or is not a text.
        """
        accepted = fields.texts("answer")
        prompt = self.format_prompt(fields)
        return Question(fields.where, prompt, accepted=tuple(accepted), solution=f" {accepted[0]}")

    def grade_text(self, question: Question, text: str) -> Outcome:
        """Right if the text, normalized, equals one of the accepted answers."""
        right = normalize(text) in {normalize(answer) for answer in question.accepted}
        return Outcome(answer=text.strip(), right=right, length=len(text.strip()))

    def ballot(self, text: str) -> str:
        """The normalized text."""
        return normalize(text)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces: the normalization of SQuAD.

    Example:
        >>> normalize("The  U.S.A.")
        'usa'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
