"""A prompt on its way through a call: what is wanted of it, and what was read of it."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.fusion.sequence import PackSequence
from packfuse.text.prompt import PackPrompt
from packfuse.weighting.methods.base import FitLimits
from packfuse.weighting.prefill import PromptReading


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of the reading of a prompt, besides losses.

    Attributes:
        limits: How much of the prompt is looked at.
        fit_positions: Whether distributions at fit positions are wanted.
    """

    limits: FitLimits
    fit_positions: bool


@dataclass(slots=True)
class PreparedPrompt:
    """A prompt that every member has read.

    Attributes:
        index: Which prompt of the request it is.
        reference: Index of the reference.
        ids: The prompt in the reference's tokens.
        prompt: The prompt in every member's tokens.
        stop: Stop strings, those of the chat template included.
        reading: What the members read.
        began: When it was read, by `time.perf_counter`.
    """

    index: int
    reference: int
    ids: list[int]
    prompt: PackPrompt
    stop: tuple[str, ...]
    reading: PromptReading
    began: float

    @property
    def sequence(self) -> PackSequence:
        """At the end of the prompt."""
        return self.reading.sequence
