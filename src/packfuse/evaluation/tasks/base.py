"""The interface of a task: it reads a question from a line of a file, and grades the answers."""

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
    """One system's log-likelihoods of a question's options.

    Attributes:
        logps: Log-probability of each option, nats.
        sizes: Bytes of each option that were scored.
        exact: Whether these are the option's bytes and no others.
        impossible: Tokens of each option that had no probability.
        first: The most probable first token, as text.
    """

    logps: Sequence[float]
    sizes: Sequence[int]
    exact: Sequence[bool]
    impossible: Sequence[int]
    first: str

    def outcome(self, gold: int) -> Outcome:
        """The loss on the right option; the task adds the grade."""
        return Outcome(
            nats=-self.logps[gold],
            bytes=self.sizes[gold],
            exact=all(self.exact),
            impossible=self.impossible[gold],
        )


class Task(BaseModel, ABC):
    """A kind of question. One file in this folder; the registry finds it by its `name`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    generates: ClassVar[bool] = False
    """Whether an answer is generated; otherwise options are scored."""
    metric: ClassVar[str] = "accuracy"
    """Name of the mean of `Outcome.right` in tables."""
    stop: ClassVar[tuple[str, ...]] = ()
    """Stop strings of a generated answer."""

    shots: int = Field(default=0, ge=0)
    """Few-shot examples before each question, from the same file; they are not evaluated."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest generated answer, tokens."""

    @classmethod
    @abstractmethod
    def fits(cls, fields: Sequence[str], answer: object) -> bool:
        """Whether a file with these fields, and this answer on its first line, is of this kind."""

    @abstractmethod
    def read(self, fields: Fields) -> Question | None:
        """A question from one line, or None if the line has no usable question.

        Raises:
            DataError: naming the file, the line and the field.
        """

    def score_options(self, question: Question, likelihoods: Likelihoods) -> Outcome:
        """The outcome of scored options.

        Raises:
            NotImplementedError: for a task that generates answers.
        """
        raise NotImplementedError

    def grade_text(self, question: Question, text: str) -> Outcome:
        """The outcome of a generated answer.

        Raises:
            NotImplementedError: for a task that scores options.
        """
        raise NotImplementedError

    def ballot(self, text: str) -> str:
        """What a generated answer votes for; equal for answers that say the same."""
        return text.strip()

    @staticmethod
    def format_prompt(fields: Fields, *lines: str) -> str:
        """A prompt in the format of lm-eval: `Question: ...`, further lines, `Answer:`.

        Raises:
            DataError: if the field `question` is missing or is not a text.
        """
        return "\n".join([f"Question: {fields.text('question').strip()}", *lines, "Answer:"])

    def few_shot_prefix(self, questions: Sequence[Question]) -> str:
        """Questions with their solutions, as the prefix of a few-shot prompt."""
        return "".join(f"{question.prompt}{question.solution}\n\n" for question in questions)
