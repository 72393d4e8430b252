"""A member's distribution where the reference's tokens end inside the member's tokens.

A *straddle* is a member's token that goes on past the end of the last reference token. Example:

    reference:  | the | quick |
    member:     | the quick   |    after the reference's "the", the straddle is " quick"

Two kinds of hypotheses explain the text so far. Either the member's own token ends where the
reference's token ends (the *cut*), or the member is inside a straddle, which is known by the bytes
that remain of it. The filter keeps the exact probability of every hypothesis: each new reference
token moves a straddle on, ends it, or begins new ones. The member's next distribution is the
mixture over the hypotheses.
"""

from __future__ import annotations

import bisect
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.spelling import spelled_bytes, unshared_marks
from packfuse.alignment.token_pairs import FLOOR, Logps, TokenPairs
from packfuse.text.vocabulary import Vocabulary

WINDOW = 8
"""Number of last reference tokens that decide the state of a filter, unless marks are longer."""

MAX_STRADDLES = 256
"""Most straddles that begin with one reference token, and at each boundary inside it."""

MIN_SHARE = 1e-5
"""Share of a reference token's mass below which a straddle is dropped."""

Masses = dict[bytes, float]
"""Mass of straddles, by the bytes that remain of them."""


@dataclass(frozen=True, slots=True)
class InnerBoundary:
    """The end of a member's token inside a reference token.

    Attributes:
        pending: Bytes from this boundary to the end of the reference token.
        logps: The member's log-probabilities here, `[member columns]`, nats; on the host when a
            filter gets them.
        token: The member's next token in its own tokenization of the text.
    """

    pending: bytes
    logps: Tensor | Logps
    token: int


class Spellings:
    """A vocabulary's tokens in the order of their bytes, with marks that the other has to spell."""

    def __init__(self, vocabulary: Vocabulary, other: Vocabulary) -> None:
        """Text tokens of `vocabulary`, and its marks that are no control tokens of `other`."""
        self.words, self.ids = vocabulary.sorted_bytes, vocabulary.sorted_ids.numpy()
        marks = unshared_marks(vocabulary, other)
        if marks:
            words, ids = list(self.words), self.ids.tolist()
            for index, spelling in marks.items():
                place = bisect.bisect_left(words, spelling)
                words.insert(place, spelling)
                ids.insert(place, index)
            self.words, self.ids = words, np.array(ids)

    def beginning(self, prefix: bytes) -> tuple[int, int]:
        """The places of the tokens that begin with `prefix`: the first, and the last plus one."""
        return _prefix_range(self.words, prefix)


class Hypotheses(ABC):
    """Which tokens of a member may go on past a reference token, and how. Filters share it."""

    def __init__(self, member: Vocabulary, reference: Vocabulary) -> None:
        """Nothing is computed yet; results are cached."""
        self.member, self.reference = member, reference
        self.continuations = lru_cache(maxsize=8192)(self._continuations)
        self._targets = Spellings(reference, member)
        marks = [spelling.decode() for spelling in unshared_marks(member, reference).values()]
        self.window = max([WINDOW, *(len(ids) + 1 for ids in reference.encode_batch(marks))])

    def _continuations(self, rest: bytes) -> tuple[NDArray[np.int64], Logps]:
        """Reference tokens that can come next if the text continues with `rest`.

        Returns:
            Ids `[n]`, and `FLOOR` for the one that the reference itself writes, else 0, `[n]`.
        """
        low, high = self._targets.beginning(rest)
        ids = self._targets.ids[low:high]
        first = self.reference.first_token(rest)
        if first is not None and self.reference.token_bytes[first] != rest:
            ids = np.append(ids, first)
        floors = np.where(ids == (-1 if first is None else first), FLOOR, 0.0)
        return ids, floors.astype(np.float32)

    @abstractmethod
    def from_cut(
        self, target: int, member_logps: Logps, reference_logps: Logps
    ) -> tuple[list[tuple[bytes, float]], float]:
        """Split the mass that the member sends to `target` at a cut before it.

        Args:
            target: The reference token.
            member_logps: The member's log-probabilities at the cut, `[member columns]`, nats.
            reference_logps: The reference's, `[reference columns]`, nats.

        Returns:
            (remaining bytes, probability) of the member tokens that go on past the end of the
            target, and the probability of all other partners of the target.
        """

    @abstractmethod
    def from_boundary(self, inner: InnerBoundary, target: int) -> list[tuple[bytes, float]]:
        """(remaining bytes, probability) of the straddles that begin at a boundary in `target`."""


class StraddleIndex(Hypotheses):
    """Straddles of all tokens."""

    def __init__(self, pairs: TokenPairs, member: Vocabulary, reference: Vocabulary) -> None:
        """Nothing is computed yet; results are cached."""
        super().__init__(member, reference)
        self.pairs = pairs
        self.consistent = lru_cache(maxsize=65536)(self._consistent)
        self._longer = lru_cache(maxsize=1024)(self._find_longer)
        self._own = Spellings(member, reference)

    def _consistent(self, target: int, rest: bytes) -> bool:
        """Whether the reference's encoding begins with `target` if `rest` follows it."""
        text = (self.reference.token_bytes[target] or b"") + rest
        firsts = {self.reference.first_token(text), self.reference.first_token(text + b"a")}
        return target in firsts

    def _find_longer(self, target: int) -> NDArray[np.bool_]:
        """By partner of `target`: whether it has bytes beyond those of `target`, `[n]`.

        The bytes themselves are not kept: a target may have thousands of partners.
        """
        token = self.reference.token_bytes[target] or b""
        ids = self.pairs.partners(target).tolist()
        partners = (spelled_bytes(self.member, index) or b"" for index in ids)
        longer = [len(other) > len(token) and other.startswith(token) for other in partners]
        return np.array(longer, dtype=np.bool_)

    def from_cut(
        self, target: int, member_logps: Logps, reference_logps: Logps
    ) -> tuple[list[tuple[bytes, float]], float]:
        """See `Hypotheses.from_cut`."""
        partners, mass = self.pairs.flow(target, member_logps, reference_logps)
        longer = self._longer(target)
        end = len(self.reference.token_bytes[target] or b"")
        least = MIN_SHARE * float(mass.sum())
        places = _largest(np.where(longer, mass, 0), least)
        found = [
            ((spelled_bytes(self.member, partner) or b"")[end:], value)
            for value, partner in zip(mass[places].tolist(), partners[places].tolist(), strict=True)
        ]
        return found, float(mass[~longer].sum())

    def from_boundary(self, inner: InnerBoundary, target: int) -> list[tuple[bytes, float]]:
        """See `Hypotheses.from_boundary`."""
        low, high = self._own.beginning(inner.pending)
        logps: Logps = on_host(inner.logps)
        probs = np.exp(logps[self._own.ids[low:high]])
        places = _largest(probs, MIN_SHARE * float(np.exp(logps[inner.token])))
        found: list[tuple[bytes, float]] = []
        for value, place in zip(probs[places].tolist(), places.tolist(), strict=True):
            rest = self._own.words[low + place][len(inner.pending) :]
            if rest and self.consistent(target, rest):
                found.append((rest, value))
        return found


@dataclass(slots=True)
class _Source:
    """The hypotheses that began at one reference token, per unit of cut mass before it.

    Attributes:
        closed: Mass that ended with the token: the member's token ends there, too.
        alive: Mass of the straddles that began with the token and have not ended since.
        ended: Mass of its straddles that ended with each later token.
    """

    closed: float
    alive: Masses
    ended: list[float] = field(default_factory=list)


class StraddleFilter:
    """The probabilities of the cut and of all straddles, for one member in one sequence.

    Attributes:
        cut: Probability that a token of the member ends at the end of the text.
        alive: Probability of each straddle, by the bytes that remain of it.
    """

    def __init__(self, index: Hypotheses) -> None:
        """Start at the beginning of a text, where the cut has probability 1."""
        self.index = index
        self._sources: list[_Source] = []
        self._open = True
        self._update()

    def copy(self) -> StraddleFilter:
        """An independent copy."""
        twin = copy.copy(self)
        twin._sources = [_Source(s.closed, dict(s.alive), list(s.ended)) for s in self._sources]
        return twin

    def advance(
        self,
        target: int,
        member_logps: Tensor | Logps | None,
        reference_logps: Tensor | Logps,
        inner: Sequence[InnerBoundary],
        open_end: bool,
    ) -> None:
        """Update for one more reference token. A control token resets the filter.

        Distributions that are not on the host yet are copied there, for which the host waits.

        Args:
            target: The reference token.
            member_logps: The member's log-probabilities at the cut before it, `[member columns]`,
                nats; None if there is no cut, because the text ended inside a character.
            reference_logps: The reference's log-probabilities before it, `[reference columns]`.
            inner: The member's own boundaries inside the token, in order.
            open_end: Whether a token of the member can end after it. Not inside a character.
        """
        self._open = open_end
        token = self.index.reference.token_bytes[target]
        if token is None:
            self._sources = []
            self._update()
            return
        reference = on_host(reference_logps)
        for source in self._sources:
            source.ended.append(self._move(source, target, token, reference))
        rests: list[tuple[bytes, float]] = []
        closed = 0.0
        if member_logps is not None:
            rests, closed = self.index.from_cut(target, on_host(member_logps), reference)
        alive: Masses = {}
        _add(alive, rests, 1.0)
        self._sources.append(_Source(closed, alive))
        self._cross(target, inner)
        self._sources = self._sources[-self.index.window :]
        self._update()

    def _move(self, source: _Source, target: int, token: bytes, reference_logps: Logps) -> float:
        """Move a source's straddles over `token`; returns the mass of those that it ends."""
        ended, alive = 0.0, Masses()
        for rest, mass in source.alive.items():
            longer = len(rest) > len(token) and rest.startswith(token)
            if not longer and not token.startswith(rest):
                continue
            options, floors = self.index.continuations(rest)
            here = options == target
            if not here.any():
                continue
            probs = np.exp(reference_logps[options]) + floors
            total = float(probs.sum())
            share = mass * float(probs[here].sum()) / total if total > 0 else 0.0
            if longer:
                alive[rest[len(token) :]] = share
            else:
                ended += share
        source.alive = alive
        return ended

    def _cross(self, target: int, inner: Sequence[InnerBoundary]) -> None:
        """Move the mass that ended in this token over the member's boundaries inside it."""
        kept, begun = 1.0, Masses()
        for place in inner:
            longer = self.index.from_boundary(place, target)
            own = float(np.exp(on_host(place.logps)[place.token]))
            total = own + sum(value for _, value in longer)
            _add(begun, longer, kept / total if total else 0.0)
            kept = kept * own / total if total else 0.0
        if not self._open:
            kept = 0.0
        for source in self._sources[:-1]:
            _add(source.alive, begun.items(), source.ended[-1])
            source.ended[-1] *= kept
        last = self._sources[-1]
        _add(last.alive, begun.items(), last.closed)
        last.closed *= kept

    def _update(self) -> None:
        """Compute `cut` and `alive` from the sources.

        A text that the member holds impossible is read from the first later token on from which it
        is possible: what the member says of the tokens after an impossible one stays known.
        """
        for start in range(len(self._sources)):
            cut, alive = self._masses(start)
            total = cut + sum(alive.values())
            if total > 0:
                self.cut = cut / total
                self.alive = {rest: mass / total for rest, mass in alive.items() if mass > 0}
                return
        self.cut, self.alive = float(self._open), {}

    def _masses(self, start: int) -> tuple[float, Masses]:
        """The masses of the cut and of the straddles, with a cut before source `start` alone."""
        sources = self._sources[start:]
        cut = [1.0] + [0.0] * len(sources)
        for step, source in enumerate(sources):
            cut[step + 1] = cut[step] * source.closed + sum(
                cut[i] * sources[i].ended[step - i - 1] for i in range(step)
            )
        alive: Masses = {}
        for mass, source in zip(cut, sources, strict=False):
            _add(alive, source.alive.items(), mass)
        return cut[-1], alive

    @property
    def trivial(self) -> bool:
        """Whether the cut has probability 1."""
        return self.cut == 1.0 and not self.alive

    @property
    def options(self) -> tuple[NDArray[np.int64], Logps, NDArray[np.int64]]:
        """What can come next by the straddles alive.

        Returns:
            Reference ids `[n]`, their floors `[n]`, and the number of ids of each straddle.
        """
        found = [self.index.continuations(rest) for rest in self.alive]
        sizes = np.array([len(ids) for ids, _ in found], dtype=np.int64)
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.float32), sizes
        ids, floors = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(floors), sizes


def on_host(logps: Tensor | Logps) -> Logps:
    """Log-probabilities as an array on the host."""
    if isinstance(logps, Tensor):
        array: Logps = logps.detach().cpu().numpy()
        return array
    return logps


def _largest(values: Logps, least: float) -> NDArray[np.intp]:
    """Places of the values above `least`, the `MAX_STRADDLES` largest at most, largest first."""
    places = np.flatnonzero(values > least)
    order = np.argsort(-values[places], kind="stable")
    return places[order[:MAX_STRADDLES]]


def _add(into: Masses, masses: Iterable[tuple[bytes, float]], factor: float) -> None:
    for rest, mass in masses:
        into[rest] = into.get(rest, 0.0) + mass * factor


def _prefix_range(words: Sequence[bytes], prefix: bytes) -> tuple[int, int]:
    """The range of the sorted `words` that begin with `prefix`: first index, last plus one."""
    low = bisect.bisect_left(words, prefix)
    return low, bisect.bisect_right(words, prefix, lo=low, key=lambda word: word[: len(prefix)])
