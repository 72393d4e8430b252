"""Plain text, in bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class Text(Task):
    """The second part of each text, after its first part, to which weights are fitted.

    Field: `text`. The cut is made before a word, where no token of any member should straddle it;
    `Outcome.exact` tells where one does.
    """

    name: ClassVar[str] = "text"

    share: float = Field(default=0.5, gt=0, lt=1)
    """How much of the text is given."""

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """A text."""
        return "text" in fields

    def read(self, fields: Fields) -> Question | None:
        """Cut before a word near the given share; texts without an inner space are left out."""
        text = fields.text("text")
        cut = text.find(" ", int(len(text) * self.share))
        given, rest = text[:cut].rstrip(), text[len(text[:cut].rstrip()) :]
        if cut < 0 or not given or not rest.strip():
            return None
        return Question(fields.where, given, (rest,), solution=rest)

    def judge(self, question: Question, found: Likelihoods) -> Outcome:
        """Nothing can be wrong; the loss counts."""
        return found.outcome(0)
