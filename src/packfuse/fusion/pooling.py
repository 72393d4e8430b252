"""What the members say at one place of each row, carried to the reference and combined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packfuse.alignment.base import Pairing
from packfuse.alignment.lexicon import Lexicon
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.gates.every import Every
from packfuse.fusion.read_plan import ReadPlan
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import with_full_support
from packfuse.fusion.sequence import PackSequence
from packfuse.models.member import Member
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class FusedPosition:
    """What the pack says at one place of a row.

    Attributes:
        read: How many of the row's ids had been read there.
        logps: The members' log-probabilities, `[K, V]`.
        fused: The pack's, `[V]`.
        joined: Whether the members were fused; if not, the reference spoke alone.
    """

    read: int
    logps: Tensor
    fused: Tensor
    joined: bool = True


PositionCallback = Callable[[PackSequence, FusedPosition], None]
"""Sees each position that the pack speaks at."""


_CUT = 0.5
"""Probability that a member's tokens end at a place, from which on they count as ending there."""


@dataclass(frozen=True, slots=True)
class CarriedLogps:
    """What the members say at N places.

    Attributes:
        logps: Log-probabilities carried to the reference, `[K, N, V]`, nats.
        reference_logps: The reference's own, before anything is carried, `[N, V]`.
        ended: Whether a token of each member ends there, `[N, K]`.
        own: By member, log-probabilities over its own tokens, `[N, columns]`, for rules that
            compare words; None where the alignment offers no lexicon.
    """

    logps: Tensor
    reference_logps: Tensor
    ended: Tensor
    own: list[Tensor] | None = None


class Pooling:
    """Carries and combines; it knows the pairings, but no rule."""

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        pairings: Sequence[Pairing],
        lexicon: Lexicon | None,
    ) -> None:
        """`pairings` are by member, with member number `reference`."""
        self.vocabularies: list[Vocabulary] = [member.vocabulary for member in members]
        self.reference, self.pairings, self.lexicon = reference, list(pairings), lexicon
        self.backed = False
        """Whether tokens that the rule drops come last instead of never (for constraints)."""
        self.gate: Gate = Every()
        """Where the members are fused."""
        self._ends = torch.tensor(self.vocabularies[reference].end_ids, dtype=torch.long)

    def pool(
        self,
        rule: Rule,
        plans: Sequence[ReadPlan],
        steps: Sequence[int],
        observer: PositionCallback | None,
    ) -> None:
        """Carry and combine one place of each job."""
        voices = self.hear(plans, steps, words=self.uses_lexicon(rule))
        weights = torch.stack([self._weights(plan.row) for plan in plans]).to(voices.logps)
        opened = self.opened(self.gate, voices, weights)
        joined = opened.tolist()
        fused = self.combine(rule, voices, weights)
        if not all(joined):
            fused = torch.where(opened[:, None], fused, voices.reference_logps)
        if self.backed:
            fused = with_full_support(fused, voices.logps, weights)
        for index, plan in enumerate(plans):
            plan.out.append(fused[index])
            plan.row.last, plan.row.heard = fused[index], voices.logps[:, index]
            plan.row.joined = joined[index]
            if observer:
                read = len(plan.row.ids) - (len(plan.own) - 1 - steps[index])
                said = voices.logps[:, index]
                observer(plan.row, FusedPosition(read, said, fused[index], plan.row.joined))

    @staticmethod
    def opened(gate: Gate, voices: CarriedLogps, weights: Tensor) -> Tensor:
        """Where a gate is open under weights `[N, K]`: `[N]`, booleans."""
        together = (voices.ended | (weights == 0)).all(1)
        return gate.opens(voices.logps, weights, voices.reference_logps, together)

    @staticmethod
    def _ended(plans: Sequence[ReadPlan], steps: Sequence[int]) -> list[list[bool]]:
        """Whether a token of each member ends at one place of each job; absent ones do not mind."""
        return [
            [
                reader is None
                or places is None
                or (
                    places[step].logps is not None
                    and (reader.straddle is None or reader.straddle.cut >= _CUT)
                )
                for reader, places in zip(plan.row.readers, plan.places, strict=True)
            ]
            for plan, step in zip(plans, steps, strict=True)
        ]

    def uses_lexicon(self, rule: Rule) -> bool:
        """Whether a rule will ask what the members say of their own tokens."""
        return rule.uses_words and self.lexicon is not None

    def hear(self, plans: Sequence[ReadPlan], steps: Sequence[int], *, words: bool) -> CarriedLogps:
        """What every member says at one place of each job; `words`: for rules that compare them."""
        at = list(zip(plans, steps, strict=True))
        reference_logps = torch.stack([plan.logps(step) for plan, step in at])
        members = range(len(self.pairings))
        logps = torch.stack([self._carried(k, at, reference_logps) for k in members])
        ended = torch.tensor(self._ended(plans, steps), device=reference_logps.device)
        own = [self._own_rows(k, at, reference_logps) for k in members] if words else None
        return CarriedLogps(logps, reference_logps, ended, own)

    def combine(self, rule: Rule, voices: CarriedLogps, weights: Tensor) -> Tensor:
        """What the pack says: fused log-probabilities `[N, V]` under weights `[N, K]`."""
        if self.lexicon and rule.uses_words and voices.own is not None:
            return rule.fuse_words(voices.own, weights, self.lexicon, self.reference)
        return rule.fuse(voices.logps, weights)

    def _weights(self, row: PackSequence) -> Tensor:
        if row.weights is not None:
            return row.weights
        count = len(self.pairings)
        return torch.full((count,), 1 / count)

    def _carried(
        self, k: int, at: Sequence[tuple[ReadPlan, int]], reference_logps: Tensor
    ) -> Tensor:
        """Member k's distributions in the reference vocabulary, `[N, V]`; absent ones echo it."""
        present, said, readers = [], [], []
        for index, (plan, step) in enumerate(at):
            places, reader = plan.places[k], plan.row.readers[k]
            if places is not None and reader is not None:
                present.append(index)
                said.append(places[step].logps)
                readers.append(reader)
        if not present:
            return reference_logps
        some = reference_logps if len(present) == len(at) else reference_logps[present]
        carried = self.pairings[k].carry(said, some, [reader.straddle for reader in readers])
        if not all(reader.ends_turns for reader in readers):
            rows = zip(readers, carried, some, strict=True)
            carried = torch.stack(
                [c if reader.ends_turns else self._leave_ends(c, b) for reader, c, b in rows]
            )
        if len(present) == len(at):
            return carried
        return reference_logps.index_copy(
            0, torch.tensor(present, device=reference_logps.device), carried
        )

    def _own_rows(
        self, k: int, at: Sequence[tuple[ReadPlan, int]], reference_logps: Tensor
    ) -> Tensor:
        """Member k's distributions over its own tokens, `[N, columns]`; -inf where it has none."""
        vocabulary = self.vocabularies[k]
        rows: list[Tensor | None] = []
        for index, (plan, step) in enumerate(at):
            places, reader = plan.places[k], plan.row.readers[k]
            said = places[step].logps if places is not None else None
            if said is not None and reader and not reader.ends_turns:
                said = self._leave_own_ends(said, vocabulary.end_ids, reference_logps[index])
            rows.append(said)
        present = next((row for row in rows if row is not None), reference_logps)
        silent = present.new_full((vocabulary.columns,), -torch.inf)
        return torch.stack([silent if row is None else row for row in rows])

    def _leave_own_ends(self, said: Tensor, ends: Sequence[int], reference_logps: Tensor) -> Tensor:
        """`_leave_ends` for a distribution over the member's own tokens."""
        if not ends:
            return said
        values = said.new_full((len(ends),), -torch.inf)
        values[0] = reference_logps[self._ends.to(reference_logps.device)].logsumexp(0)
        return _with_ends(said, torch.tensor(ends, device=said.device), values)

    def _leave_ends(self, carried: Tensor, reference_logps: Tensor) -> Tensor:
        """The carried distribution with the reference's own probability of ending the turn."""
        ends = self._ends.to(carried.device)
        return _with_ends(carried, ends, reference_logps[ends])


def _with_ends(said: Tensor, ends: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities with `values` at `ends`; all others keep their proportions."""
    mine, theirs = (p.exp().sum().clamp(0, 1 - 1e-6) for p in (said[ends], values))
    moved = said + (torch.log1p(-theirs) - torch.log1p(-mine))
    return moved.index_copy(0, ends, values)
