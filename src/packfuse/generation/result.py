"""What every call leaves behind: who was trusted, how much, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "cancelled"]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(_Plain):
    """Tokens, counted in the reference's vocabulary, and per member in its own.

    Those that are called cached belong to the prompt, and came out of the prefix cache.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_by_member: dict[str, int]
    cached_tokens: int = 0
    cached_tokens_by_member: dict[str, int] = {}


class Timings(_Plain):
    """Seconds; a batch shares its decoding time."""

    prefill_seconds: float
    weights_seconds: float
    decode_seconds: float
    tokens_per_second: float


class Drafts(_Plain):
    """What became of drafted tokens.

    Attributes:
        method: How they were drafted, with its parameters.
        rounds: Passes in which a draft was checked.
        drafted: Tokens drafted.
        accepted: Those that are in the answer.
    """

    method: dict[str, Any]
    rounds: int
    drafted: int
    accepted: int


class TraceStep(_Plain):
    """One generated token: what the pack and each member gave it, and what each would have said."""

    text: str
    probability: float
    member_probabilities: dict[str, float]
    member_choices: dict[str, str]


class FusionRecord(_Plain):
    """The fusion of one answer, as plain JSON types.

    Attributes:
        members: Names, in the pack's order.
        reference: The member in whose tokens the pack spoke.
        fusion: The rule with its parameters; likewise `weighting` and `alignment`.
        weights: By member, on this prompt; they sum to one.
        prompt_loss: By member, nats per reference token; None if the prompt was not scored.
        bits_per_byte: By member, on the same text; None likewise.
        scored_tokens: Reference tokens on which the losses were taken.
        usage: Token counts.
        finish_reason: "stop" (an end token or a stop string), "length" or "cancelled".
        stop: The stop string that ended it, if one did.
        agreed: Share of steps where every member with a say had the same first choice; None if
            no step was recorded.
        overruled: Share of steps where the pack's first choice was not the reference's.
        gate: Where the members were fused, with its parameters.
        fused: Share of steps where they were; elsewhere the reference spoke alone.
        drafts: What became of drafts, where the pack drafted.
        timings: Seconds.
        seed: The seed of the call, if one was given.
        constraint: What the answer was held to: "json_schema", "regex" or "grammar".
        notes: What was done to the prompt that the user should know.
        trace: One entry a step, if asked for.
    """

    members: list[str]
    reference: str
    fusion: dict[str, Any]
    weighting: dict[str, Any]
    alignment: dict[str, Any]
    weights: dict[str, float]
    prompt_loss: dict[str, float] | None
    bits_per_byte: dict[str, float] | None
    scored_tokens: int
    usage: Usage
    finish_reason: FinishReason
    stop: str | None = None
    agreed: float | None = None
    overruled: float | None = None
    gate: dict[str, Any] = {"name": "every"}
    fused: float | None = None
    drafts: Drafts | None = None
    timings: Timings
    seed: int | None = None
    constraint: str | None = None
    notes: list[str] = []
    trace: list[TraceStep] | None = None


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


def by_name(names: Sequence[str], values: Iterable[float] | None) -> dict[str, float] | None:
    """Values by member name, as plain floats; None stays None."""
    if values is None:
        return None
    return {name: float(value) for name, value in zip(names, values, strict=True)}
