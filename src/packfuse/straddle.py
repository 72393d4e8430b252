"""What a member believes when the reference has cut one of its tokens in two.

The reference's tokens end where the member may not have wanted an end. Two kinds of hypotheses
explain the text so far: the member's own tokens end here too (the *cut*), or it is inside a longer
token that the reference writes in several pieces (a *straddle*, known by the bytes that remain).
This is exact filtering over those hypotheses: every reference token that is read either moves mass
on inside a straddle, ends one, or begins new ones, and the next distribution is their mixture.
"""

from __future__ import annotations

import bisect
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from packfuse.relation import Relation
from packfuse.vocabulary import Vocabulary

WINDOW = 8
"""Reference tokens that the filter looks back; makes its state a function of the last tokens."""

MOST = 256
"""Straddles kept per reference token."""

LEAST = 1e-5
"""Share of a reference token's mass below which a straddle is dropped."""


@dataclass(frozen=True, slots=True)
class Inner:
    """A member boundary inside a reference token.

    Attributes:
        pending: Bytes from this boundary to the end of the reference token.
        logps: The member's log-probabilities here, `[member columns]`.
        token: What the member reads next on its own path.
    """

    pending: bytes
    logps: Tensor
    token: int


@dataclass(slots=True)
class _Source:
    """Everything that began at one reference token, per unit of cut mass before it."""

    closed: float
    alive: dict[bytes, float]
    ended: list[float] = field(default_factory=list)


class Joints:
    """Where two vocabularies' tokens overlap: byte ranges and consistency, cached."""

    def __init__(self, relation: Relation, member: Vocabulary, reference: Vocabulary) -> None:
        """Sort both vocabularies by bytes once."""
        self.relation, self.member, self.reference = relation, member, reference
        self._member_ids = torch.tensor([member.ids_of[b][0] for b in member.sorted_bytes])
        self._reference_ids = torch.tensor([reference.ids_of[b][0] for b in reference.sorted_bytes])
        self.continuations = lru_cache(maxsize=8192)(self._continuations)
        self.consistent = lru_cache(maxsize=65536)(self._consistent)

    def _continuations(self, rest: bytes) -> Tensor:
        """Reference tokens that can come next when the text goes on with `rest`, `[n]`."""
        low, high = _prefix_range(self.reference.sorted_bytes, rest)
        ids = self._reference_ids[low:high]
        first = self.reference.first_token(rest)
        if first is None or self.reference.token_bytes[first] == rest:
            return ids
        return torch.cat([ids, torch.tensor([first])])

    def _consistent(self, target: int, rest: bytes) -> bool:
        """Whether the reference writes `target` first when `rest` follows it."""
        text = (self.reference.token_bytes[target] or b"") + rest
        firsts = {self.reference.first_token(text), self.reference.first_token(text + b"a")}
        return target in firsts

    def longer(self, inner: Inner, target: int) -> list[tuple[bytes, float]]:
        """Member tokens that go on past the reference token's end: (remaining bytes, probability)."""
        low, high = _prefix_range(self.member.sorted_bytes, inner.pending)
        probs = inner.logps[self._member_ids[low:high]].exp()
        values, places = probs.topk(min(MOST, len(probs)))
        least = LEAST * float(inner.logps[inner.token].exp())
        found: list[tuple[bytes, float]] = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            rest = self.member.sorted_bytes[low + place][len(inner.pending) :]
            if value > least and rest and self.consistent(target, rest):
                found.append((rest, value))
        return found


def _prefix_range(words: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """The range of sorted `words` that begin with `prefix`."""
    low = bisect.bisect_left(words, prefix)
    high = bisect.bisect_left(words, prefix + b"\xff" * 8, lo=low)
    return low, high


class Straddle:
    """The filter for one member in one row."""

    def __init__(self, joints: Joints) -> None:
        """Start with the cut alone."""
        self.joints = joints
        self._sources: list[_Source] = []
        self._open = True
        self._update()

    def copy(self) -> Straddle:
        """An independent copy."""
        twin = copy.copy(self)
        twin._sources = [
            _Source(s.closed, dict(s.alive), list(s.ended)) for s in self._sources
        ]
        return twin

    def advance(
        self,
        target: int,
        member: Tensor | None,
        reference: Tensor,
        inner: Sequence[Inner],
        open_end: bool,
    ) -> None:
        """Read one reference token.

        Args:
            target: The reference token.
            member: The member's probabilities at the cut before it, `[member columns]`; None if
                there was no cut (the text stood inside a character).
            reference: The reference's probabilities before it, `[reference columns]`.
            inner: The member's own boundaries inside the token, in order.
            open_end: Whether the member's tokens can end after it (not inside a character).
        """
        token = self.joints.reference.token_bytes[target]
        if token is None:
            self._sources, self._open = [], open_end
            self._update()
            return
        steps = [self._move(source, target, token, reference) for source in self._sources]
        fresh, closed = self._begin(target, token, member, reference)
        for source, ended in zip(self._sources, steps, strict=True):
            source.ended.append(ended)
        self._sources.append(_Source(closed, fresh))
        self._chain(target, inner, open_end)
        self._sources = self._sources[-WINDOW:]
        self._open = open_end
        self._update()

    def _move(self, source: _Source, target: int, token: bytes, reference: Tensor) -> float:
        """Move a source's straddles over `token`; the mass of those that it ends."""
        ended, alive = 0.0, {}
        for rest, mass in source.alive.items():
            longer = len(rest) > len(token) and rest.startswith(token)
            if not longer and not token.startswith(rest):
                continue
            follow = self.joints.continuations(rest)
            if not bool((follow == target).any()):
                continue
            total = float(reference[follow].sum())
            share = mass * float(reference[target]) / total if total > 0 else 0.0
            if longer:
                alive[rest[len(token) :]] = share
            else:
                ended += share
        source.alive = alive
        return ended

    def _begin(
        self, target: int, token: bytes, member: Tensor | None, reference: Tensor
    ) -> tuple[dict[bytes, float], float]:
        """Split what the cut sends to `target` into longer member tokens and the rest."""
        if member is None:
            return {}, 0.0
        tokens, mass = self.joints.relation.flow(target, member, reference)
        closed, total = 0.0, float(mass.sum())
        if len(mass) > MOST:
            mass, places = mass.topk(MOST)
            tokens = tokens[places]
        fresh: dict[bytes, float] = {}
        for index, value in zip(tokens.tolist(), mass.tolist(), strict=True):
            mine = self.joints.member.token_bytes[index]
            if mine is not None and len(mine) > len(token) and mine.startswith(token):
                if value > LEAST * total:
                    rest = mine[len(token) :]
                    fresh[rest] = fresh.get(rest, 0.0) + value
            else:
                closed += value
        return fresh, closed

    def _chain(self, target: int, inner: Sequence[Inner], open_end: bool) -> None:
        """Let ended mass run over the member's boundaries inside the token."""
        keep, births = 1.0, {}
        for place in inner:
            longer = self.joints.longer(place, target)
            own = float(place.logps[place.token].exp())
            total = own + sum(value for _, value in longer)
            for rest, value in longer:
                births[rest] = births.get(rest, 0.0) + (keep * value / total if total else 0.0)
            keep = keep * own / total if total else 0.0
        if not open_end:
            keep = 0.0
        for source in self._sources[:-1]:
            ended = source.ended[-1]
            source.ended[-1] = ended * keep
            _add(source.alive, births, ended)
        last = self._sources[-1]
        _add(last.alive, births, last.closed)
        last.closed *= keep

    def _update(self) -> None:
        """The present mixture: mass of the cut and of every straddle."""
        count = len(self._sources)
        cut = [1.0] + [0.0] * count
        for step in range(count):
            cut[step + 1] = cut[step] * self._sources[step].closed + sum(
                cut[i] * self._sources[i].ended[step - i - 1] for i in range(step)
            )
        alive: dict[bytes, float] = {}
        for mass, source in zip(cut, self._sources, strict=False):
            _add(alive, source.alive, mass)
        total = cut[count] + sum(alive.values())
        if total > 0:
            self.cut = cut[count] / total
            self.alive = {rest: mass / total for rest, mass in alive.items() if mass > 0}
        else:
            self.cut, self.alive = float(self._open), {}

    @property
    def trivial(self) -> bool:
        """Whether the cut explains everything."""
        return self.cut == 1.0 and not self.alive

    def mix(self, carried: Tensor | None, reference: Tensor) -> Tensor | None:
        """The member's next distribution in the reference vocabulary.

        Args:
            carried: Its distribution at the cut, carried, `[reference columns]`; None without one.
            reference: The reference's own probabilities.

        Returns:
            Probabilities summing to one, or None if the member has nothing to say.
        """
        mixed = torch.zeros_like(reference)
        if carried is not None and self.cut > 0:
            mixed += carried * (self.cut / carried.sum().clamp_min(1e-30))
        if self.alive:
            parts = [self.joints.continuations(rest) for rest in self.alive]
            sizes = torch.tensor([len(part) for part in parts])
            ids, group = torch.cat(parts), torch.repeat_interleave(sizes)
            belief = reference[ids]
            share = belief.new_zeros(len(parts)).index_add_(0, group, belief)
            mass = torch.tensor(list(self.alive.values()), dtype=belief.dtype)
            scale = torch.where(share > 0, mass / share, 0.0)
            mixed.index_add_(0, ids, belief * scale[group])
        total = mixed.sum()
        return mixed / total if float(total) > 0 else None


def _add(into: dict[bytes, float], masses: dict[bytes, float], factor: float) -> None:
    for rest, mass in masses.items():
        into[rest] = into.get(rest, 0.0) + mass * factor
