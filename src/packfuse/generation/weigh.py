"""Compares the weights of several weightings on one prompt; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.errors import ConfigError
from packfuse.fusion.rules import rules
from packfuse.generation.assistants import skill_of
from packfuse.generation.output.result import by_name
from packfuse.generation.prepared import ScoreOptions
from packfuse.generation.runner import Runner
from packfuse.models.loading import unique_names
from packfuse.view.tables import Cell, Share, html_table
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Weighting, Weights, equal


class Weighing(BaseModel):
    """The members' weights on one prompt under several weightings, as plain JSON types.

    Attributes:
        members: Names of the members, in the pack's order.
        reference: The member whose tokens would be generated.
        fusion: The fusion rule that the weights are for, with its parameters.
        weights: Weights by weighting, then by member.
        skill: In a chat, the members' skill in worked chats, which the weightings with a prior use;
            None in a plain text.
        skill_deviation: The standard deviation of each, from the number of worked chats.
        prompt_share: By weighting, the share of its weights that was fitted to this prompt, 0 to 1.
        sharpness: By weighting, the power to which fused distributions are raised; of those that
            do not leave them as they are.
        prompt_loss: Loss by member, nats per reference token; None if the prompt was not scored.
        bits_per_byte: The same losses in bits per byte of text; None if not scored.
        scored_tokens: Number of reference tokens on which the losses were computed.
        prompt_tokens: By member, the length of the prompt in the member's own tokens.
        notes: Changes to the prompt that the user should know about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: list[str]
    reference: str
    fusion: dict[str, Any]
    weights: dict[str, dict[str, float]]
    skill: dict[str, float] | None = None
    skill_deviation: dict[str, float] | None = None
    prompt_share: dict[str, float] = {}
    sharpness: dict[str, float] = {}
    prompt_loss: dict[str, float] | None
    bits_per_byte: dict[str, float] | None
    scored_tokens: int
    prompt_tokens: dict[str, int]
    notes: list[str] = []

    def __repr__(self) -> str:
        """The weights by weighting, in the members' order."""
        shown = [
            f"{label} {' / '.join(f'{share:.2f}' for share in own.values())}"
            for label, own in self.weights.items()
        ]
        return f"Weighing({', '.join(self.members)}: {', '.join(shown)})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A table with one row per member."""
        scored = {"nats/token": self.prompt_loss, "bits/byte": self.bits_per_byte}
        figures = {head: values for head, values in scored.items() if values is not None}
        if self.skill is not None:
            figures["skill"] = self.skill
        rows: list[list[Cell]] = [
            [
                name,
                *(Share(own[name]) for own in self.weights.values()),
                *(f"{own[name]:.3f}" if name in own else "–" for own in figures.values()),
            ]
            for name in self.members
        ]
        facts = f"{self.scored_tokens} tokens of {self.reference} scored"
        return html_table(
            f"Weights for {rules().text(self.fusion)}",
            ["member", *self.weights, *figures],
            rows,
            [facts, *self.notes],
        )


def compare_weightings(runner: Runner, specs: Sequence[Any] | None) -> Weighing:
    """Fit several weightings to the prompt of a runner.

    The prompt is read once for all weightings with the same limits.

    Args:
        runner: A runner with one prompt.
        specs: The weightings; None for all that need no parameters, and the pack's own.

    Raises:
        ConfigError: for an unknown weighting, or none at all.
    """
    runtime, pool = runner.runtime, runner.request.call.rule.pool
    labeled = _labeled(specs, runner.request.call.weighting)
    names = runtime.names
    found: dict[str, Weights] = {}
    chat = False
    for limits in dict.fromkeys(weighting.limits for weighting in labeled.values()):
        group = {label: own for label, own in labeled.items() if own.limits == limits}
        fitted = [own for own in group.values() if own.for_members(names) is None]
        positions = len(names) > 1 and any(own.needs_scores(pool) for own in fitted)
        item = runner.read(0, runner.request.prompts[0], ScoreOptions(limits, positions))
        for label, own in group.items():
            given = own.for_members(names)
            found[label] = runner.fit(item, own) if given is None else given
            chat = chat or item.skill is not None
        fit = runner.finish(item, equal(len(names)))
    known = skill_of(runtime, runner.pause) if chat else None
    return Weighing(
        members=names,
        reference=names[item.reference],
        fusion=rules().dump(runner.request.call.rule),
        weights={label: by_name(names, found[label]) or {} for label in labeled},
        skill=by_name(names, known.weights if known else None),
        skill_deviation=by_name(names, known.deviations if known else None),
        prompt_share={
            label: own.prompt_share(fit.tokens, chat=chat)
            for label, own in labeled.items()
            if own.for_members(names) is None
        },
        sharpness={
            label: power
            for label, own in labeled.items()
            if (power := own.power(found[label])) is not None
        },
        prompt_loss=by_name(names, fit.losses),
        bits_per_byte=by_name(names, fit.bits_per_byte),
        scored_tokens=fit.tokens,
        prompt_tokens=dict(zip(names, fit.prompt_tokens, strict=True)),
        notes=list(item.prompt.notes),
    )


def _labeled(specs: Sequence[Any] | None, own: Weighting) -> dict[str, Weighting]:
    """Weightings by label: the name, with a number if it occurs twice."""
    registry = weightings()
    if specs is None:
        fields = {name: part.model_fields.values() for name, part in registry.parts.items()}
        free = [name for name, known in fields.items() if not any(f.is_required() for f in known)]
        specs = free if own.name in free else [*free, own]
    if not specs:
        raise ConfigError("no weighting to compare", hint=f"known: {', '.join(registry.parts)}")
    made = [registry.make(spec) for spec in specs]
    return dict(zip(unique_names([weighting.name for weighting in made]), made, strict=True))
