"""Who is trusted on a prompt: every weighting's verdict, without generating anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, PrivateAttr

from packfuse.errors import ConfigError
from packfuse.generation.result import by_name
from packfuse.models.loading import unique_names
from packfuse.registry import rules, weightings
from packfuse.weighting.methods.base import Evidence, FitLimits, Weighting, Weights, equal

if TYPE_CHECKING:
    from packfuse.generation.runner import Runner


class Weighing(BaseModel):
    """What the members made of one prompt, as plain JSON types.

    Attributes:
        members: Names, in the pack's order.
        reference: The member in whose tokens the pack would speak.
        fusion: The rule that the weights are for, with its parameters.
        weights: By weighting, then by member.
        prompt_loss: By member, nats per reference token; None if the prompt was not scored.
        bits_per_byte: By member, on the same text; None likewise.
        scored_tokens: Reference tokens on which the losses were taken.
        prompt_tokens: Length of the prompt by member, each in its own tokens.
        notes: What was done to the prompt that the user should know.
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


class Survey(Weighting):
    """Asks several weightings about the same evidence, and itself trusts all members alike."""

    source: ClassVar[str] = "not a method of its own"

    asked: dict[str, tuple[Any, str]]
    """(weighting, pool) by the label under which their weights are kept; all want the same limits.
    """
    _answers: dict[str, Weights] = PrivateAttr(default_factory=dict)

    def needs_scores(self, pool: str) -> bool:
        """Whatever any of them needs for its own pool."""
        return any(weighting.needs_scores(own) for weighting, own in self.asked.values())

    @property
    def limits(self) -> FitLimits:
        """What they all want."""
        return next((weighting.limits for weighting, _ in self.asked.values()), FitLimits())

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Equal weights; what the others say is kept."""
        for label, (weighting, own) in self.asked.items():
            self._answers[label] = weighting.fit(evidence, own)
        return equal(evidence.members)

    def answer(self, label: str, members: int) -> Weights:
        """What one of them said; equal weights where there was nothing to fit."""
        return self._answers.get(label, equal(members))


def compare_weightings(runner: Runner, specs: Sequence[Any] | None) -> Weighing:
    """Weigh the one prompt of `runner` under several weightings, all known ones by default."""
    asked = _labeled(specs)
    names = runner.pack.names
    found = {label: weighting.for_members(names) for label, weighting in asked.items()}
    with runner.settings():
        # Losses per reference token and per own token are different evidence; so are limits.
        for normalize, limits in dict.fromkeys((w.normalize, w.limits) for w in asked.values()):
            open_ones = {
                label: (weighting, runner.request.rule.pool)
                for label, weighting in asked.items()
                if (weighting.normalize, weighting.limits) == (normalize, limits)
                and found[label] is None
            }
            survey = Survey(normalize=normalize, asked=open_ones)
            runner.request.weighting = survey
            item = runner.prepare(0, runner.request.prompts[0])
            found.update({label: survey.answer(label, len(names)) for label in open_ones})
    fit = item.fit
    return Weighing(
        members=names,
        reference=names[item.reference],
        fusion=rules().dump(runner.request.rule),
        weights={label: by_name(names, weights) or {} for label, weights in found.items()},
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
        raise ConfigError("no weighting to ask", hint=f"known: {', '.join(registry.parts)}")
    made = [registry.make(spec) for spec in specs]
    return dict(zip(unique_names([weighting.name for weighting in made]), made, strict=True))
