"""The control tokens of a member: where their mass goes in the reference, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.spelling import unshared_marks
from packfuse.alignment.straddle import MIN_SHARE, Hypotheses, InnerBoundary
from packfuse.alignment.token_pairs import FLOOR, Logps
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import Constant

HEDGE = 0.01
"""Share of the reference's own distribution in what is carried between a mark and its spelling, as
in the alignment "bytes"."""


class MarkTable:
    """The marks that a member has as control tokens and the reference has to spell.

    Attributes:
        id_of: The member's ids by spelling.
        begins: The first byte of each spelling.
    """

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Look up the marks of `member`."""
        marks = unshared_marks(member, reference)
        self.id_of = {spelling: index for index, spelling in marks.items()}
        self.begins = frozenset(spelling[:1] for spelling in self.id_of)
        self._marks = _ids(marks)
        firsts = [member.first_token(spelling) for spelling in marks.values()]
        self._firsts = _ids(-1 if index is None else index for index in firsts)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.id_of)

    def preferred(self, logps: Tensor) -> Tensor:
        """Which marks the member prefers to the beginning of their spelling, bool `[n]`.

        Args:
            logps: Its log-probabilities where the spelling begins, `[member columns]`, nats.
        """
        marks, firsts = self._marks.on(logps.device), self._firsts.on(logps.device)
        spelled = logps[firsts.clamp_min(0)].masked_fill(firsts < 0, -torch.inf)
        return logps[marks] > spelled


class MarkHypotheses(Hypotheses):
    """Straddles of marks alone, for alignments that have no other straddles."""

    def __init__(
        self,
        marks: MarkTable,
        member: Vocabulary,
        reference: Vocabulary,
        table: NDArray[np.int64],
    ) -> None:
        """`table` has the member's text tokens by reference id, `[columns]`; -1 for none."""
        super().__init__(member, reference)
        self._table = table
        self._begun: dict[int, list[tuple[int, bytes]]] = {}
        for spelling, index in marks.id_of.items():
            first = reference.first_token(spelling)
            if first is not None:
                rest = spelling[len(reference.token_bytes[first] or b"") :]
                self._begun.setdefault(first, []).append((index, rest))

    def from_cut(
        self, target: int, member_logps: Logps, reference_logps: Logps
    ) -> tuple[list[tuple[bytes, float]], float]:
        """See `Hypotheses.from_cut`."""
        begun, own = self._begun.get(target, []), int(self._table[target])
        ids = [index for index, _ in begun] + [own] * (own >= 0)
        probs = np.exp(member_logps[ids]).tolist()
        closed = probs.pop() if own >= 0 else 0.0
        least = MIN_SHARE * (closed + sum(probs))
        marks = [(rest, p) for (_, rest), p in zip(begun, probs, strict=True)]
        closed += sum(p for rest, p in marks if not rest)
        return [(rest, p) for rest, p in marks if rest and p > least], closed

    def from_boundary(self, inner: InnerBoundary, target: int) -> list[tuple[bytes, float]]:
        """None: a mark that begins inside a reference token is read as text."""
        return []


class ControlFlow:
    """Where the mass on a member's control tokens goes, besides those that a table carries.

    A mark goes to the control token with its spelling or to the first token of its spelling, an end
    to an end. What is left cannot be carried. The member abstains with that mass, that is, it takes
    the reference's own distribution instead, and so with a share `HEDGE` of spelled marks.
    """

    def __init__(
        self, member: Vocabulary, reference: Vocabulary, carried: Collection[int], *, twins: bool
    ) -> None:
        """Look up all control tokens of `member`.

        Args:
            member: The member's vocabulary.
            reference: The reference's vocabulary.
            carried: The member's ids that are carried already.
            twins: Whether every control token goes to the one with its spelling; if not, only marks
                and ends.
        """
        found = dict(_destinations(member, reference, carried, twins=twins))
        self._ids = _ids(found)
        spelled = [reference.token_bytes[target] is not None for target in found.values()]
        hedge = torch.where(torch.tensor(spelled, dtype=torch.bool), HEDGE, 0.0)
        lost = torch.tensor([target < 0 for target in found.values()], dtype=torch.bool)
        self._lost = Constant(torch.where(lost, 1.0, hedge))
        moved = torch.tensor([target for target in found.values() if target >= 0]).long()
        self._moved = Constant(torch.nonzero(~lost)[:, 0])
        targets, group = torch.unique(moved, return_inverse=True)
        self._targets, self._group = Constant(targets), Constant(group)

    @property
    def used_ids(self) -> Tensor:
        """The member's ids that are read here."""
        return self._ids.tensor

    def kept(self, logps: Tensor) -> Tensor:
        """Log of the mass that is not on these tokens, `[N, 1]`."""
        mass = logps.index_select(-1, self._ids.on(logps.device)).exp()
        return torch.log1p(-mass.sum(-1, keepdim=True).clamp(max=1))

    def add(self, carried: Tensor, logps: Tensor, reference: Tensor) -> Tensor:
        """Add the mass of these tokens to a carried distribution that is without it.

        Args:
            carried: Log-probabilities `[N, reference columns]`, nats.
            logps: The member's, `[N, member columns]`.
            reference: The reference's own, `[N, reference columns]`.
        """
        if not len(self._ids):
            return carried
        device = carried.device
        mass = logps.index_select(-1, self._ids.on(device)).exp()
        if len(self._targets):
            lost = self._lost.on(device)
            moved = (mass * (1 - lost))[:, self._moved.on(device)]
            arriving = moved.new_zeros(len(moved), len(self._targets))
            arriving.index_add_(1, self._group.on(device), moved)
            targets = self._targets.on(device)
            both = torch.logaddexp(carried[:, targets], arriving.log())
            carried = carried.index_copy(1, targets, both)
        abstained = (mass * self._lost.on(device)).sum(-1, keepdim=True)
        return torch.logaddexp(carried, abstained.log() + reference)


class MarkShare:
    """The reference's marks that a member has to spell: a share `HEDGE` of the reference's mass.

    Without it, a member that prefers any text would make the mark impossible in a product of
    probabilities.
    """

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Look up the marks of `reference`."""
        self._marks = _ids(unshared_marks(reference, member))

    def add(self, carried: Tensor, reference: Tensor, kept: Tensor) -> Tensor:
        """Carried log-probabilities `[N, reference columns]` with these shares.

        `kept` is the log of their sum, `[N, 1]`.
        """
        if not len(self._marks):
            return carried
        marks = self._marks.on(carried.device)
        share = HEDGE * reference[:, marks].exp()
        carried = carried + torch.log1p(-share.sum(-1, keepdim=True))
        found = torch.logaddexp(carried[:, marks], share.log() + kept)
        return carried.index_copy(1, marks, found)


class SharedFirsts:
    """The reference's marks that a member of the same text tokens has to spell.

    Each takes a share of the first token of its spelling, in proportion to the reference's own
    probabilities.
    """

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Look up the marks of `reference`."""
        firsts = {
            index: member.first_token(spelling)
            for index, spelling in unshared_marks(reference, member).items()
        }
        found = {index: first for index, first in firsts.items() if first is not None}
        self._marks = _ids(found)
        first = torch.tensor(list(found.values()), dtype=torch.long)
        firsts, group = torch.unique(first, return_inverse=True)
        self._firsts, self._group = Constant(firsts), Constant(group)

    def add(self, carried: Tensor, reference: Tensor) -> Tensor:
        """Carried log-probabilities `[N, reference columns]` with these shares."""
        if not len(self._marks):
            return carried
        device = carried.device
        marks, firsts = self._marks.on(device), self._firsts.on(device)
        group, mass = self._group.on(device), carried[:, firsts]
        own, others = reference[:, firsts].exp() + FLOOR, reference[:, marks].exp()
        total = own.index_add(1, group, others)
        carried = carried.index_copy(1, firsts, mass + (own / total).log())
        return carried.index_copy(1, marks, mass[:, group] + (others / total[:, group]).log())


def _ids(ids: Iterable[int]) -> Constant:
    return Constant(torch.tensor(list(ids), dtype=torch.long))


def _destinations(
    member: Vocabulary, reference: Vocabulary, carried: Collection[int], *, twins: bool
) -> Iterator[tuple[int, int]]:
    """Each control token that is not carried already, and the reference's id for it, or -1."""
    ends = [*reference.end_ids[:1], -1]
    for spelling, index in member.controls.items():
        if index >= member.columns or index in carried:
            continue
        twin = reference.controls.get(spelling, reference.columns)
        wanted = twins or index in member.marks or twin in (*reference.marks, *reference.end_ids)
        if twin < reference.columns and wanted:
            yield index, twin
        elif index in member.end_ids:
            yield index, ends[0]
        else:
            first = reference.first_token(spelling.encode()) if index in member.marks else None
            yield index, -1 if first is None else first
