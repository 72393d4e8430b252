"""Fuses the members' carried distributions under the settings of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from packfuse.alignment.lexicon import Lexicon
from packfuse.fusion.carrying import CarriedLogps, Carrier
from packfuse.fusion.gates.base import Gate, Positions, all_at_boundary
from packfuse.fusion.gates.every import Every
from packfuse.fusion.read_plan import ReadPlan
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import with_full_support
from packfuse.fusion.rules.sharpening import Sharpening
from packfuse.fusion.sequence import PackSequence
from packfuse.transfer import upload


@dataclass(frozen=True, slots=True)
class FusedPosition:
    """One position of a sequence.

    Attributes:
        tokens_read: How many of the sequence's ids had been read there.
        logps: The members' carried log-probabilities, `[K, V]`.
        fused: The pack's log-probabilities, `[V]`.
        is_fused: Whether the gate was open; if not, `fused` is the reference's distribution.
    """

    tokens_read: int
    logps: Tensor
    fused: Tensor
    is_fused: bool = True


PositionCallback = Callable[[PackSequence, FusedPosition], None]
"""Called with every position that is fused."""


class Fusion(Protocol):
    """How carried distributions are fused; the engine is given one with every call."""

    @property
    def observer(self) -> PositionCallback | None:
        """Called with every position."""

    @property
    def literal(self) -> bool:
        """Whether members are carried literally; see `Gate.literal`."""

    def uses_lexicon(self, lexicon: Lexicon | None) -> bool:
        """Whether distributions over the members' own vocabularies are needed."""

    def fuses_like(self, other: Any) -> bool:
        """Whether another fusion gives the same distributions, whatever its observer."""

    def fuse(self, carried: CarriedLogps, weights: Tensor) -> tuple[Tensor, list[bool]]:
        """Fuse N positions under weights `[N, K]`.

        Returns:
            Log-probabilities `[N, V]` in nats, and whether the gate was open at each position.
        """


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """The usual fusion: one rule, where one gate is open.

    Attributes:
        rule: How distributions are combined.
        gate: At which positions; elsewhere the reference's distribution is used.
        full_support: Whether tokens outside the rule's support rank last instead of being
            impossible; constrained decoding needs it.
        observer: Called with every position.
    """

    rule: Rule
    gate: Gate = field(default_factory=Every)
    full_support: bool = False
    observer: PositionCallback | None = None

    @property
    def literal(self) -> bool:
        """See `Fusion`."""
        return self.gate.literal

    @property
    def sharpening(self) -> Sharpening | None:
        """The power to which fused distributions are raised; None to leave them as they are."""
        return None

    def uses_lexicon(self, lexicon: Lexicon | None) -> bool:
        """See `Fusion`."""
        return self.rule.uses_words and lexicon is not None

    def fuses_like(self, other: Any) -> bool:
        """See `Fusion`."""
        return isinstance(other, FusionSettings) and (
            (self.rule, self.gate, self.full_support, self.sharpening)
            == (other.rule, other.gate, other.full_support, other.sharpening)
        )

    def fuse(self, carried: CarriedLogps, weights: Tensor) -> tuple[Tensor, list[bool]]:
        """See `Fusion`."""
        at = Positions(
            carried.logps,
            weights,
            carried.reference_logps,
            carried.at_boundary,
            carried.reference,
            carried.vocabulary,
            carried.last,
        )
        fused, is_fused = self.gate.decide(at, lambda: self._combined(carried, weights))
        if self.full_support:
            fused = with_full_support(fused, carried.logps, weights)
        return fused, is_fused

    def _combined(self, carried: CarriedLogps, weights: Tensor) -> Tensor:
        fused = combine(self.rule, carried, weights)
        return self.sharpening.apply(fused, weights) if self.sharpening else fused


def gate_open(gate: Gate, carried: CarriedLogps, weights: Tensor) -> Tensor:
    """Where a gate is open under weights `[N, K]`: `[N]`, booleans."""
    together = all_at_boundary(carried.at_boundary, weights)
    return gate.opens(carried.logps, weights, carried.reference_logps, together)


def combine(rule: Rule, carried: CarriedLogps, weights: Tensor) -> Tensor:
    """Fused log-probabilities `[N, V]` under weights `[N, K]`."""
    if rule.uses_words and carried.own is not None and carried.lexicon is not None:
        return rule.fuse_words(carried.own, weights, carried.lexicon, carried.reference)
    return rule.fuse(carried.logps, weights)


def pool(
    carrier: Carrier,
    plans: Sequence[ReadPlan],
    steps: Sequence[int],
    fusions: Sequence[Fusion],
) -> None:
    """Carry and fuse one boundary of each plan; results go to the plans and their sequences.

    Plans whose fusions are alike are fused together.
    """
    rest = list(zip(plans, steps, fusions, strict=True))
    while rest:
        fusion = rest[0][2]
        alike = [other is fusion or fusion.fuses_like(other) for _, _, other in rest]
        group = [one for one, same in zip(rest, alike, strict=True) if same]
        rest = [one for one, same in zip(rest, alike, strict=True) if not same]
        _pool_alike(carrier, *zip(*group, strict=True))


def _pool_alike(
    carrier: Carrier,
    plans: Sequence[ReadPlan],
    steps: Sequence[int],
    fusions: Sequence[Fusion],
) -> None:
    fusion = fusions[0]
    words = fusion.uses_lexicon(carrier.lexicon)
    carried = carrier.carry_all(plans, steps, words=words, literal=fusion.literal)
    sequences = [plan.sequence for plan in plans]
    weights = torch.stack([_weights(sequence) for sequence in sequences])
    weights = upload(weights, carried.logps.device, carried.logps.dtype)
    fused, open_at = fusion.fuse(carried, weights)
    for index, (plan, is_fused) in enumerate(zip(plans, open_at, strict=True)):
        sequence, member_logps = plan.sequence, carried.logps[:, index]
        plan.out.append(fused[index])
        sequence.fused_logps, sequence.member_logps = fused[index], member_logps
        tokens_read = plan.tokens_read(steps[index])
        sequence.note_gate(tokens_read, is_fused)
        if (observer := fusions[index].observer) is not None:
            observer(sequence, FusedPosition(tokens_read, member_logps, fused[index], is_fused))


def _weights(sequence: PackSequence) -> Tensor:
    if sequence.weights is not None:
        return sequence.weights
    count = len(sequence.streams)
    return torch.full((count,), 1 / count)
