"""The interface of a task: a line of a file in, a question out, and a verdict on what was said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Outcome, Question


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """What one system makes of a question's options.

    Attributes:
        logps: Log-probability of each option, nats.
        sizes: Bytes it was taken on.
        exact: Whether these are the option's bytes and no others.
        impossible: Tokens of each that had no probability.
        first: What the system would write first.
    """

    logps: Sequence[float]
    sizes: Sequence[int]
    exact: Sequence[bool]
    impossible: Sequence[int]
    first: str

    def outcome(self, gold: int) -> Outcome:
        """The loss on the right option; the verdict is the task's."""
        return Outcome(
            nats=-self.logps[gold],
            bytes=self.sizes[gold],
            exact=all(self.exact),
            impossible=self.impossible[gold],
        )


class Task(BaseModel, ABC):
    """A kind of question. One file in this folder; it registers itself by its `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    generates: ClassVar[bool] = False
    """Whether an answer is written, or options are scored."""
    verdict: ClassVar[str] = "accuracy"
    """What `Outcome.right` is called in tables."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Texts before which a written answer ends."""

    shots: int = Field(default=0, ge=0)
    """Worked examples before each question, taken from the same file and left out of it."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest written answer, tokens."""

    @classmethod
    @abstractmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether a file with these fields, and this answer on its first line, is of this kind."""

    @abstractmethod
    def read(self, fields: Fields) -> Question | None:
        """A question from one line, or None for one that cannot be asked.

        Raises:
            DataError: naming the file, the line and the field.
        """

    def judge(self, question: Question, found: Likelihoods) -> Outcome:
        """The verdict on scored options; for tasks that do not generate."""
        raise NotImplementedError

    def mark(self, question: Question, text: str) -> Outcome:
        """The verdict on a written answer; for tasks that generate."""
        raise NotImplementedError

    @staticmethod
    def ask(fields: Fields, *lines: str) -> str:
        """How a question is worded, as in lm-eval: `Question: ...`, further lines, `Answer:`."""
        return "\n".join([f"Question: {fields.text('question').strip()}", *lines, "Answer:"])

    def worked(self, questions: Sequence[Question]) -> str:
        """Worked examples, to stand before a question."""
        return "".join(f"{question.prompt}{question.solution}\n\n" for question in questions)
