"""Several weightings on one prompt; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.errors import ConfigError
from packfuse.fusion.rules import rules
from packfuse.generation.prepared import Wanted
from packfuse.generation.result import by_name
from packfuse.generation.runner import Runner
from packfuse.models.loading import unique_names
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Weighting, Weights, equal
from packfuse.weighting.prefill import fit_weights


class Weighing(BaseModel):
    """The members' weights on one prompt under several weightings, as plain JSON types.

    Attributes:
        members: Names, in the pack's order.
        reference: The member whose tokens would be generated.
        fusion: The rule that the weights are for, with its parameters.
        weights: By weighting, then by member.
        prompt_loss: By member, nats per reference token; None if the prompt was not scored.
        bits_per_byte: By member, on the same text; None likewise.
        scored_tokens: Reference tokens on which the losses were taken.
        prompt_tokens: Length of the prompt by member, each in its own tokens.
        notes: Changes to the prompt that the user should know of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: list[str]
    reference: str
    fusion: dict[str, Any]
    weights: dict[str, dict[str, float]]
    prompt_loss: dict[str, float] | None
    bits_per_byte: dict[str, float] | None
    scored_tokens: int
    prompt_tokens: dict[str, int]
    notes: list[str] = []


def compare_weightings(runner: Runner, specs: Sequence[Any] | None) -> Weighing:
    """Fit several weightings to the one prompt of a runner, all known ones by default."""
    runtime, pool = runner.runtime, runner.request.call.rule.pool
    asked = _labeled(specs)
    names = runtime.names
    found: dict[str, Weights] = {}
    for limits in dict.fromkeys(weighting.limits for weighting in asked.values()):
        group = {label: own for label, own in asked.items() if own.limits == limits}
        fitted = [own for own in group.values() if own.for_members(names) is None]
        positions = len(names) > 1 and any(own.needs_scores(pool) for own in fitted)
        item = runner.read(0, runner.request.prompts[0], Wanted(limits, positions))
        for label, own in group.items():
            given = own.for_members(names)
            found[label] = fit_weights(item.reading, own, pool) if given is None else given
        fit = runner.finish(item, equal(len(names)))
    return Weighing(
        members=names,
        reference=names[item.reference],
        fusion=rules().dump(runner.request.call.rule),
        weights={label: by_name(names, found[label]) or {} for label in asked},
        prompt_loss=by_name(names, fit.losses),
        bits_per_byte=by_name(names, fit.bits_per_byte),
        scored_tokens=fit.tokens,
        prompt_tokens=dict(zip(names, fit.prompt_tokens, strict=True)),
        notes=list(item.prompt.notes),
    )


def _labeled(specs: Sequence[Any] | None) -> dict[str, Weighting]:
    """Weightings by name; without `specs`, every one that needs no parameters."""
    registry = weightings()
    if specs is None:
        fields = {name: part.model_fields.values() for name, part in registry.parts.items()}
        specs = [name for name, own in fields.items() if not any(f.is_required() for f in own)]
    if not specs:
        raise ConfigError("no weighting to compare", hint=f"known: {', '.join(registry.parts)}")
    made = [registry.make(spec) for spec in specs]
    return dict(zip(unique_names([weighting.name for weighting in made]), made, strict=True))
