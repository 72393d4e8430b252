"""Carries every member's distribution to the reference vocabulary, at one boundary a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from packfuse.alignment.base import Pairing
from packfuse.alignment.lexicon import Lexicon
from packfuse.alignment.straddle import StraddleFilter
from packfuse.fusion.gates.base import LastToken
from packfuse.fusion.read_plan import NOTHING, ReadPlan, nothing_expected
from packfuse.models.member import Member
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import Constant, upload

_AT_BOUNDARY = 0.5
"""Probability of a token end from which on a member counts as standing at one."""

At = Sequence[tuple[ReadPlan, int]]
"""N plans, each with the number of one of its boundaries."""


@dataclass(frozen=True, slots=True)
class CarriedLogps:
    """The members' distributions at N positions.

    Attributes:
        logps: Log-probabilities carried to the reference vocabulary, `[K, N, V]`, nats.
        reference_logps: The reference's own, `[N, V]`, nats.
        at_boundary: Whether a token of each member ends there, N times K, on the host.
        own: By member, log-probabilities over its own vocabulary, `[N, columns]`, for rules that
            compare words; None where they are not needed.
        lexicon: Finds a member's words in another vocabulary; None unless `own` is there.
        reference: Index of the reference member.
        vocabulary: The reference's.
        last: The token before each position, for gates that look back.
    """

    logps: Tensor
    reference_logps: Tensor
    at_boundary: list[list[bool]]
    own: list[Tensor] | None
    lexicon: Lexicon | None
    reference: int
    vocabulary: Vocabulary
    last: list[LastToken]


class Carrier:
    """Carries the distributions of a pack's members to its reference."""

    def __init__(
        self,
        members: Sequence[Member],
        reference: int,
        pairings: Sequence[Pairing],
        lexicon: Lexicon | None,
    ) -> None:
        """`pairings` are by member, each with the reference, which is member `reference`."""
        self.vocabularies: list[Vocabulary] = [member.vocabulary for member in members]
        self.reference, self.pairings, self.lexicon = reference, list(pairings), lexicon
        ends = self.vocabularies[reference].end_ids
        self._ends = Constant(torch.tensor(ends, dtype=torch.long))

    def carry_all(
        self,
        plans: Sequence[ReadPlan],
        steps: Sequence[int],
        *,
        words: bool,
        literal: bool = False,
    ) -> CarriedLogps:
        """Carry all members at one boundary of each plan.

        Args:
            plans: N executed plans.
            steps: The boundary of each.
            words: Whether the members' distributions over their own vocabularies are wanted, too.
            literal: See `Gate.literal`.
        """
        at = list(zip(plans, steps, strict=True))
        reference_logps = torch.stack([plan.reference_logps(step) for plan, step in at])
        members = range(len(self.pairings))
        return CarriedLogps(
            logps=torch.stack([self._carry(k, at, reference_logps, literal) for k in members]),
            reference_logps=reference_logps,
            at_boundary=_at_boundary(at),
            own=[self._own_logps(k, at, reference_logps) for k in members] if words else None,
            lexicon=self.lexicon if words else None,
            reference=self.reference,
            vocabulary=self.vocabularies[self.reference],
            last=[plan.sequence.last_token(plan.tokens_read(step)) for plan, step in at],
        )

    def _carry(self, k: int, at: At, reference_logps: Tensor, literal: bool) -> Tensor:
        """Member k in the reference vocabulary, `[N, V]`; the reference where it does not read."""
        present, found, streams = [], [], []
        for index, (plan, step) in enumerate(at):
            boundaries, stream = plan.boundaries[k], plan.sequence.streams[k]
            if boundaries is not None and stream is not None:
                present.append(index)
                found.append(boundaries[step].logps)
                streams.append(stream)
        if not present:
            return reference_logps
        everywhere = len(present) == len(at)
        rows = None if everywhere else upload(present, reference_logps.device)
        there = reference_logps if rows is None else reference_logps.index_select(0, rows)
        filters = [stream.straddle for stream in streams]
        if literal and k != self.reference:
            carried = self.pairings[k].carry(found, nothing_expected(there), filters)
            total = carried.logsumexp(-1, keepdim=True)
            carried = torch.where(total > NOTHING / 2, carried - total, there)
        else:
            carried = self.pairings[k].carry(found, there, filters)
        if not all(stream.ends_turns for stream in streams):
            parts = zip(streams, carried, there, strict=True)
            carried = torch.stack(
                [c if stream.ends_turns else self._with_own_ends(c, r) for stream, c, r in parts]
            )
        return carried if rows is None else reference_logps.index_copy(0, rows, carried)

    def _own_logps(self, k: int, at: At, reference_logps: Tensor) -> Tensor:
        """Member k over its own vocabulary, `[N, columns]`; -inf where it has no distribution."""
        vocabulary = self.vocabularies[k]
        rows: list[Tensor | None] = []
        for index, (plan, step) in enumerate(at):
            boundaries, stream = plan.boundaries[k], plan.sequence.streams[k]
            logps = boundaries[step].logps if boundaries is not None else None
            if logps is not None and stream and stream.straddle and not stream.straddle.trivial:
                logps = _with_straddles(logps, stream.straddle, vocabulary)
            if logps is not None and stream and not stream.ends_turns:
                logps = self._with_reference_ends(logps, vocabulary.end_ids, reference_logps[index])
            rows.append(logps)
        present = next((row for row in rows if row is not None), reference_logps)
        nothing = present.new_full((vocabulary.columns,), -torch.inf)
        return torch.stack([nothing if row is None else row for row in rows])

    def _with_reference_ends(
        self, logps: Tensor, ends: Sequence[int], reference_logps: Tensor
    ) -> Tensor:
        """A member's own distribution with the reference's probability that the turn ends."""
        if not ends:
            return logps
        values = logps.new_full((len(ends),), -torch.inf)
        values[0] = reference_logps[self._ends.on(reference_logps.device)].logsumexp(0)
        return _with_values(logps, upload(list(ends), logps.device), values)

    def _with_own_ends(self, carried: Tensor, reference_logps: Tensor) -> Tensor:
        """A carried distribution with the reference's probability that the turn ends."""
        ends = self._ends.on(carried.device)
        return _with_values(carried, ends, reference_logps[ends])


def _with_straddles(logps: Tensor, straddle: StraddleFilter, own: Vocabulary) -> Tensor:
    """A member's own distribution, mixed with what begins the rests of its straddles."""
    probs = logps.exp() * straddle.cut
    for rest, mass in straddle.alive.items():
        first = own.first_token(rest)
        if first is not None:
            probs[first] += mass
    return probs.log()


def _at_boundary(at: At) -> list[list[bool]]:
    """Whether a token of each member ends at each boundary; absent members do not count."""
    return [
        [
            stream is None
            or boundaries is None
            or (
                boundaries[step].logps is not None
                and (stream.straddle is None or stream.straddle.cut >= _AT_BOUNDARY)
            )
            for stream, boundaries in zip(plan.sequence.streams, plan.boundaries, strict=True)
        ]
        for plan, step in at
    ]


def _with_values(logps: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities `[V]` with `values` at `ids`; all others keep their proportions."""
    mine, theirs = (p.exp().sum().clamp(0, 1 - 1e-6) for p in (logps[ids], values))
    moved = logps + (torch.log1p(-theirs) - torch.log1p(-mine))
    return moved.index_copy(0, ids, values)
