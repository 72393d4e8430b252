"""One question of a development set, and what a system made of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, in plain text.

    Attributes:
        where: The file and the line it comes from.
        prompt: What the models read.
        options: Texts that may follow, to be scored; empty where an answer is generated.
        gold: Which option is right.
        accepted: Answers that count as right, where one is generated.
        solution: The right answer written out, for worked examples.
    """

    where: str
    prompt: str
    options: tuple[str, ...] = ()
    gold: int = 0
    accepted: tuple[str, ...] = ()
    solution: str = ""

    @property
    def key(self) -> str:
        """A digest of its content, wherever it stands."""
        parts = [self.prompt, *self.options, str(self.gold), *self.accepted]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def after(self, worked: str) -> Question:
        """The same question with worked examples before it."""
        return replace(self, prompt=worked + self.prompt) if worked else self


class Outcome(BaseModel):
    """What one system made of one question.

    Attributes:
        answer: Its answer: an option's text, a letter, or what it wrote; empty for plain text.
        right: Whether that is right; None where nothing can be wrong.
        raw: The same by likelihood not divided by length; None where there is no such thing.
        nats: Negative log-likelihood of the right answer; None where it was not scored.
        bytes: Bytes it was scored on.
        exact: Whether these are the bytes of the answer and no others.
        impossible: Tokens that a rule gave no probability; each counts -log(1e-6) nats.
        length: Characters written, where an answer was generated.
        tokens: Tokens read and written.
        fused: Share of the answer's tokens at which members were fused, not left to the reference.
        seconds: What that took; settings that shared a reading share its time.
        reference: In whose tokens.
        weights: By member.
        prompt_bits: By member, bits per byte of the prompt; None if it was not scored.
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
    fused: float | None = None
    seconds: float = 0.0
    reference: str = ""
    weights: dict[str, float] = {}
    prompt_bits: dict[str, float] | None = None
