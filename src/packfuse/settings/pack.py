"""How the members of a pack are fused and run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from packfuse.settings.base import Settings

Part = str | dict[str, Any] | SerializeAsAny[BaseModel]
"""A part of a pack: its name, `{"name": ..., parameter: ...}`, or the object itself."""

HeadsName = Literal["full", "pruned"]
HEADS: tuple[HeadsName, ...] = get_args(HeadsName)
StepsName = Literal["auto", "static", "eager"]
STEPS: tuple[StepsName, ...] = get_args(StepsName)
PARTS = ("fusion", "weighting", "alignment", "draft", "gate")
"""Fields that take a part."""

SCHEDULING = ("max_rows", "max_cache", "max_waiting")
"""Fields that say how many calls are answered at once; they change no answer."""


class PackSettings(Settings):
    """How the members of a pack are fused and run."""

    fusion: Part = "packllm"
    """Fusion rule: how next-token distributions are combined."""
    weighting: Part = "exact"
    """How the members are weighted on a prompt; {member: weight} for fixed weights."""
    alignment: Part = "bytes"
    """How vocabularies are compared."""
    reference: str = "auto"
    """Member whose tokens are generated; auto: lowest prompt loss, in a chat most skilled."""
    draft: Part | None = None
    """Speculative decoding: how tokens are drafted before the pack verifies them in one pass. The
    answers are the same, in bfloat16 and float16 up to rounding; none: token by token."""
    gate: Part = "every"
    """At which positions the members are fused; elsewhere the reference decides alone."""
    heads: HeadsName = "full"
    """pruned: the other members' LM heads compute only the logits that the alignment reads. Faster
    where their vocabularies are larger, slightly less exact; weights stay the same."""
    prefix_cache: NonNegativeInt | Literal["auto"] = "auto"
    """Prefix KV cache in bytes; auto: 6 % of the size of the models; 0: off."""
    max_rows: PositiveInt = 16
    """Most answers that are decoded at the same time; further calls wait."""
    max_cache: PositiveInt | Literal["auto"] = "auto"
    """Most bytes of the KV caches of these answers; auto: half of the memory that is free when the
    first call comes."""
    max_waiting: PositiveInt = 1000
    """Most prompts that may wait; further calls raise BusyError."""
    on_member_failure: Literal["raise", "drop"] = "raise"
    """When the server of a member fails: raise its error, or drop the member, unless it is the
    reference. The record says from which token on; the next call tries it again. Scores always
    raise the error, beams do once the prompt has been read, and drafts are not used."""
    steps: StepsName = "auto"
    """How members decode. static: over KV caches of fixed size, on CUDA as CUDA graphs; eager: as
    the models are written, slower on CUDA; auto: static on CUDA, eager on processors."""
    parallel: bool = False
    """Experimental: members on different devices run at the same time. On processors it is slower
    than one after the other."""
    compiled: bool = False
    """Experimental: steps of single tokens and drafts run in code compiled by torch. Compiling
    takes up to a minute for each kind of step. Excludes parallel."""

    @field_validator("weighting", mode="before")
    @classmethod
    def _fixed_weights(cls, value: Any) -> Any:
        return weighting_part(value)

    @field_validator("draft", mode="before")
    @classmethod
    def _no_draft(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("prefix_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ("auto" if value else 0) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _parallel_or_compiled(self) -> Self:
        if self.parallel and self.compiled:
            raise ValueError("choose one of parallel=True and compiled=True")
        return self

    @field_serializer(*PARTS)
    def _plain_part(self, value: Any) -> Any:
        return plain_part(value)

    @property
    def changes_answers(self) -> dict[str, Any]:
        """The settings that can change an answer, as plain JSON types, for caches."""
        return self.model_dump(mode="json", include=_CHANGES_ANSWERS)


# What is sampled with a seed depends on the draft, though its distribution does not.
_CHANGES_ANSWERS = {*PARTS, "reference", "heads", "steps", "compiled", "on_member_failure"}


def weighting_part(value: Any) -> Any:
    """A weighting as a part: `{member: weight}` is short for fixed weights."""
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": "fixed", "weights": dict(value)}
    return value


def plain_part(value: Any) -> Any:
    """A part as plain JSON types; names and mappings stay as they are."""
    if isinstance(value, BaseModel):
        return {"name": getattr(value, "name", None), **value.model_dump(mode="json")}
    return value
