"""Plain text, in bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Likelihoods, Task


class Text(Task):
    """The loss on the second part of each text; weights are fitted to the first part.

    Field: `text`. The text is split before a word, where tokens of the members rarely cross the
    boundary; `Outcome.exact` is false where one does.
    """

    name: ClassVar[str] = "text"

    share: float = Field(default=0.5, gt=0, lt=1)
    """Length of the first part, as a share of the text's characters."""

    @classmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether the file has texts."""
        return "text" in fields

    def read(self, fields: Fields) -> Question | None:
        """Split before the first word after `share`; texts without such a word are skipped.

        Raises:
            DataError: if the field is missing or is not a text.
        """
        text = fields.text("text")
        cut = text.find(" ", int(len(text) * self.share))
        prompt, rest = text[:cut].rstrip(), text[len(text[:cut].rstrip()) :]
        if cut < 0 or not prompt or not rest.strip():
            return None
        return Question(fields.where, prompt, (rest,), solution=rest)

    def score_options(self, question: Question, likelihoods: Likelihoods) -> Outcome:
        """The loss alone; there is no right or wrong answer."""
        return likelihoods.outcome(0)
