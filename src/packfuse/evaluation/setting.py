"""The settings under which a pack is evaluated: rule, weighting, alignment, reference, gate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from packfuse.alignment import alignments
from packfuse.alignment.base import Alignment
from packfuse.errors import ConfigError
from packfuse.fusion.gates import gates
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.gates.every import Every
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.pack import Pack
from packfuse.registry import parse_spec, suggest
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Weighting
from packfuse.weighting.methods.calibrated import Calibrated
from packfuse.weighting.methods.fixed import Fixed

_PARTS = 5


@dataclass(frozen=True, slots=True)
class Setting:
    """One point in the space of methods.

    Attributes:
        rule: How distributions are combined.
        weighting: How the members' weights are fitted to the prompt.
        alignment: How vocabularies are aligned.
        reference: A member's name, or "auto".
        gate: At which positions members are fused.
    """

    rule: Rule
    weighting: Weighting
    alignment: Alignment
    reference: str = "auto"
    gate: Gate = field(default_factory=Every)

    @classmethod
    def of(cls, pack: Pack) -> Setting:
        """The setting of a pack."""
        parts = pack.runtime.parts
        reference = pack.settings.reference
        return cls(parts.rule, parts.weighting, parts.alignment, reference, parts.gate)

    @classmethod
    def parse(cls, text: str, pack: Pack) -> Setting:
        """A setting from its text, `RULE/WEIGHTING/ALIGNMENT/REFERENCE/GATE`.

        Parts that are empty or omitted at the end are those of `pack`.

        Raises:
            ConfigError: for too many parts, an unknown name, or a wrong parameter.
        """
        parts = text.split("/")
        if len(parts) > _PARTS:
            raise ConfigError(
                f"{text!r} has {len(parts)} parts",
                hint="write RULE/WEIGHTING/ALIGNMENT/REFERENCE/GATE",
            )
        own = cls.of(pack)
        rule, weighting, alignment, reference, gate = (parts + [""] * _PARTS)[:_PARTS]
        if reference and reference not in ("auto", *pack.names):
            raise ConfigError(
                f"no member is called {reference!r}", hint=suggest(reference, pack.names)
            )
        return cls(
            rules().make(parse_spec(rule)) if rule else own.rule,
            weightings().make(parse_spec(weighting)) if weighting else own.weighting,
            alignments().make(parse_spec(alignment)) if alignment else own.alignment,
            reference or own.reference,
            gates().make(parse_spec(gate)) if gate else own.gate,
        )

    @property
    def label(self) -> str:
        """The name in tables; the gate is omitted if it is always open."""
        gate = gates().text(gates().dump(self.gate))
        return " · ".join([*self.method, self.reference, *([gate] if gate != Every.name else [])])

    @property
    def method(self) -> tuple[str, str, str]:
        """Rule, weighting and alignment as text."""
        weighting = self.weighting
        if isinstance(weighting, Fixed) and isinstance(weighting.weights, dict):
            shares = " ".join(f"{name}={share:g}" for name, share in weighting.weights.items())
        elif isinstance(weighting, Calibrated):
            priors = (f"{name}={own.prior:.3g}" for name, own in weighting.members.items())
            shares = f"calibrated({' '.join(priors)}, trust={weighting.trust:.3g})"
        else:
            shares = weightings().text(weightings().dump(weighting))
        return (
            rules().text(rules().dump(self.rule)),
            shares,
            alignments().text(alignments().dump(self.alignment)),
        )

    def dump(self) -> dict[str, Any]:
        """The setting as plain JSON types."""
        return {
            "fusion": rules().dump(self.rule),
            "weighting": weightings().dump(self.weighting),
            "alignment": alignments().dump(self.alignment),
            "reference": self.reference,
            "gate": gates().dump(self.gate),
        }


@dataclass(frozen=True, slots=True)
class Samples:
    """How often the best member is sampled, for a majority at about the cost of the pack.

    Attributes:
        count: Number of samples of each answer.
        temperature: Their temperature.

    Raises:
        ConfigError: for fewer than two samples, or a temperature at which all are the same.
    """

    count: int
    temperature: float = 0.7

    def __post_init__(self) -> None:
        """Check the values."""
        if self.count < 2:
            raise ConfigError(
                f"{self.count} samples have no majority", hint="take two or more, or none at all"
            )
        if not (0 < self.temperature < math.inf):
            raise ConfigError(
                f"samples at temperature {self.temperature:g} say nothing new: at 0 all are the "
                "same answer",
                hint="a temperature above 0, such as 0.7",
            )


def every_method(own: Setting) -> list[Setting]:
    """`own`, and every rule with every weighting without required parameters, otherwise like it."""
    free = [
        part()
        for part in weightings().parts.values()
        if not any(field.is_required() for field in part.model_fields.values())
    ]
    found = [
        replace(own, rule=rule(), weighting=weighting)
        for rule in rules().parts.values()
        for weighting in free
    ]
    return found if own in found else [*found, own]


def grid(own: Setting, names: Sequence[str], steps: int) -> Iterator[Setting]:
    """Fixed weights: each member's share from 0 to 1 in `steps` steps, the rest shared equally.

    With two members only the share of the second one is varied.

    Raises:
        ConfigError: for one member.
    """
    pair = 2
    if len(names) < pair:
        raise ConfigError("a grid of weights needs two members or more", hint="leave out --grid")
    for name in names[-1:] if len(names) == pair else names:
        for step in range(steps + 1):
            share = step / steps
            rest = (1 - share) / (len(names) - 1)
            weights = {other: share if other == name else rest for other in names}
            yield replace(own, weighting=Fixed(weights=weights))
