"""One question of a development set, and the outcome of one system on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its right answer, as plain text.

    Attributes:
        where: The file and the line of the question.
        prompt: The prompt.
        options: Continuations to score; empty if an answer is generated.
        gold: Index of the right option.
        accepted: Answers that count as right if an answer is generated.
        solution: The right answer as it continues the prompt, for few-shot examples.
    """

    where: str
    prompt: str
    options: tuple[str, ...] = ()
    gold: int = 0
    accepted: tuple[str, ...] = ()
    solution: str = ""

    @property
    def key(self) -> str:
        """A digest of the content; it does not depend on the file and the line."""
        parts = [self.prompt, *self.options, str(self.gold), *self.accepted]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def with_prefix(self, examples: str) -> Question:
        """The same question with few-shot examples before its prompt."""
        return replace(self, prompt=examples + self.prompt) if examples else self


def distinct(questions: Sequence[Question]) -> tuple[list[Question], list[str]]:
    """The questions, each once, and what the others repeat, by file and line."""
    first: dict[str, Question] = {}
    repeats = []
    for question in questions:
        known = first.setdefault(question.key, question)
        if known is not question:
            repeats.append(f"{question.where} repeats {known.where}")
    return list(first.values()), repeats


class Outcome(BaseModel):
    """The result of one system on one question.

    Attributes:
        answer: An option's text, a letter, or the generated text; empty for plain text.
        right: Whether the answer is right; None for plain text.
        raw: The same by log-likelihood without normalization by length; None if it does not apply.
        nats: Negative log-likelihood of the right answer, nats; None if it was not scored.
        bytes: Bytes that were scored.
        exact: Whether the scored bytes are those of the answer and no others.
        impossible: Tokens that a rule gave no probability; each counts -log(1e-6) nats.
        length: Characters of the generated answer.
        tokens: Tokens read and generated.
        member_tokens: The same in the members' own tokens, summed over the members.
        fused: Share of the answer's tokens at which the gate was open and members were fused.
        seconds: Wall-clock time, seconds; settings that share a forward pass share its time.
        reference: Name of the reference member.
        weights: Weight of each member by name.
        prompt_bits: Bits per byte of the prompt by member; None if the prompt was not scored.
    """

    model_config = ConfigDict(extra="forbid")

    answer: str = ""
    right: bool | None = None
    raw: bool | None = None
    nats: float | None = None
    bytes: int = 0
    exact: bool = True
    impossible: int = 0
    length: int = 0
    tokens: int = 0
    member_tokens: int = 0
    fused: float | None = None
    seconds: float = 0.0
    reference: str = ""
    weights: dict[str, float] = {}
    prompt_bits: dict[str, float] | None = None
