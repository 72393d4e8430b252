"""What a member believes when the reference has cut one of its tokens in two.

The reference's tokens end where the member may not have wanted an end. Two kinds of hypotheses
explain the text so far: the member's own tokens end here too (the *cut*), or it is inside a longer
token that the reference writes in several pieces (a *straddle*, known by the bytes that remain).
This is exact filtering over those hypotheses: every reference token that is read either moves mass
on inside a straddle, ends one, or begins new ones, and the next distribution is their mixture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from packfuse.alignment.joints import InnerBoundaries, InnerBoundary

WINDOW = 8
"""Reference tokens that the filter looks back; makes its state a function of the last tokens."""

Masses = dict[bytes, float]
"""Mass of straddles by the bytes that remain of them."""


@dataclass(slots=True)
class _Source:
    """Everything that began at one reference token, per unit of cut mass before it.

    Attributes:
        closed: Mass that ended with the token.
        alive: Mass that went on past it and still does.
        ended: Mass of its straddles that ended with each later token.
    """

    closed: float
    alive: Masses
    ended: list[float] = field(default_factory=list)


class Straddle:
    """The filter for one member in one row."""

    def __init__(self, joints: InnerBoundaries) -> None:
        """Start with the cut alone."""
        self.joints = joints
        self._sources: list[_Source] = []
        self._open = True
        self._update()

    def copy(self) -> Straddle:
        """An independent copy."""
        twin = copy.copy(self)
        twin._sources = [_Source(s.closed, dict(s.alive), list(s.ended)) for s in self._sources]
        return twin

    def advance(
        self,
        target: int,
        member: Tensor | None,
        reference: Tensor,
        inner: Sequence[InnerBoundary],
        open_end: bool,
    ) -> None:
        """Read one reference token.

        Args:
            target: The reference token.
            member: The member's log-probabilities at the cut before it, `[member columns]`; None if
                there was no cut (the text stood inside a character).
            reference: The reference's log-probabilities before it, `[reference columns]`.
            inner: The member's own boundaries inside the token, in order.
            open_end: Whether the member's tokens can end after it (not inside a character).
        """
        self._open = open_end
        token = self.joints.reference.token_bytes[target]
        if token is None:
            self._sources = []
            self._update()
            return
        for source in self._sources:
            source.ended.append(self._move(source, target, token, reference))
        rests, closed = (
            self.joints.begin(target, member, reference) if member is not None else ([], 0.0)
        )
        alive: Masses = {}
        _add(alive, rests, 1.0)
        self._sources.append(_Source(closed, alive))
        self._chain(target, inner)
        self._sources = self._sources[-WINDOW:]
        self._update()

    def _move(self, source: _Source, target: int, token: bytes, reference: Tensor) -> float:
        """Move a source's straddles over `token`; the mass of those that it ends."""
        ended, alive = 0.0, Masses()
        for rest, mass in source.alive.items():
            longer = len(rest) > len(token) and rest.startswith(token)
            if not longer and not token.startswith(rest):
                continue
            follow = self.joints.continuations(rest)
            if not bool((follow == target).any()):
                continue
            total = float(reference[follow].exp().sum())
            share = mass * float(reference[target].exp()) / total if total > 0 else 0.0
            if longer:
                alive[rest[len(token) :]] = share
            else:
                ended += share
        source.alive = alive
        return ended

    def _chain(self, target: int, inner: Sequence[InnerBoundary]) -> None:
        """Let the mass that ends here run over the member's boundaries inside the token."""
        keep, births = 1.0, Masses()
        for place in inner:
            longer = self.joints.longer(place, target)
            own = float(place.logps[place.token].exp())
            total = own + sum(value for _, value in longer)
            _add(births, longer, keep / total if total else 0.0)
            keep = keep * own / total if total else 0.0
        if not self._open:
            keep = 0.0
        for source in self._sources[:-1]:
            _add(source.alive, births.items(), source.ended[-1])
            source.ended[-1] *= keep
        last = self._sources[-1]
        _add(last.alive, births.items(), last.closed)
        last.closed *= keep

    def _update(self) -> None:
        """The present mixture: mass of the cut and of every straddle."""
        count = len(self._sources)
        cut = [1.0] + [0.0] * count
        for step in range(count):
            cut[step + 1] = cut[step] * self._sources[step].closed + sum(
                cut[i] * self._sources[i].ended[step - i - 1] for i in range(step)
            )
        alive: Masses = {}
        for mass, source in zip(cut, self._sources, strict=False):
            _add(alive, source.alive.items(), mass)
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
            ids = torch.cat(parts).to(reference.device)
            group = torch.repeat_interleave(sizes).to(reference.device)
            reference_logps = reference[ids]
            share = reference_logps.new_zeros(len(parts)).index_add_(0, group, reference_logps)
            mass = reference_logps.new_tensor(list(self.alive.values()))
            scale = torch.where(share > 0, mass / share, 0.0)
            mixed.index_add_(0, ids, reference_logps * scale[group])
        total = mixed.sum()
        return mixed / total if float(total) > 0 else None


def _add(into: Masses, masses: Iterable[tuple[bytes, float]], factor: float) -> None:
    for rest, mass in masses:
        into[rest] = into.get(rest, 0.0) + mass * factor
