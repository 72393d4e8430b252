"""What a call gives back."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.generation.record import FusionRecord


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text.

    Attributes:
        text: What was generated, without the prompt and without a stop string.
        record: The fusion metadata of this answer.
        token_ids: The reference's ids, as generated.
    """

    text: str
    record: FusionRecord
    token_ids: tuple[int, ...]

    def __str__(self) -> str:
        """The text."""
        return self.text


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer.

    Attributes:
        text: The next piece; may be empty in the last chunk.
        record: The fusion metadata, in the last chunk only.
    """

    text: str
    record: FusionRecord | None = None
