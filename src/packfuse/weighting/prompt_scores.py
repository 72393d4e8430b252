"""The members' scores of a prompt: losses and distributions, collected in the prompt pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
from torch import Tensor

from packfuse.alignment.base import Pairing, ReferenceView
from packfuse.models.member import ReadCallback
from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import Download, upload
from packfuse.weighting.fit_positions import FitPositions
from packfuse.weighting.methods.base import Evidence, FitLimits, Weights

FIT_BYTES = 48 * 2**20
"""Limit of memory for one member's distributions at fit positions, in bytes."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(slots=True)
class MemberScores:
    """One member's log-probabilities of the prompt.

    Attributes:
        ids: The tokens of the whole prompt: the member's own, or the reference's for a member that
            is fed the reference's ids.
        spans: (index, start, end) of the tokens inside the scored texts, with byte offsets.
        boundaries: Number of tokens by offset, at offsets where one token ends and the next begins.
    """

    ids: list[int]
    spans: list[tuple[int, int, int]]
    boundaries: dict[int, int] = field(init=False)
    _logps: Weights = field(init=False)
    _arriving: list[tuple[list[int], Download]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Find the boundaries; between two texts, the beginning of the second one is used."""
        starts = {start: index for index, start, _ in self.spans if index}
        ends = {end: index + 1 for index, _, end in self.spans}
        self.boundaries = {**ends, **starts}
        self._logps = np.full(len(self.ids), np.nan)

    @property
    def logps(self) -> Weights:
        """Log-probability of each token given the tokens before it, nats; NaN if unknown."""
        for places, values in self._arriving:
            self._logps[places] = values.wait()[0]
        self._arriving.clear()
        return self._logps

    def add(self, places: list[int], logps: Tensor) -> None:
        """Add log-probabilities `[n]` of the tokens at `places`, which nothing waits for yet."""
        self._arriving.append((places, Download([logps.double()])))


@dataclass(frozen=True, slots=True)
class ScoredPiece:
    """A piece of text between two neighboring token boundaries that all members share.

    Attributes:
        text: Its bytes.
        start: Offset of the first one.
        tokens: Number of the reference's tokens in it.
        losses: Loss of each member on it, `[K]`, nats; NaN for members that do not read the prompt.
    """

    text: bytes
    start: int
    tokens: int
    losses: Weights


class PromptScores:
    """Scores one prompt with every member, in the pass that generation needs anyway.

    Losses are computed on pieces of text between boundaries that all members share, so that they
    are comparable.

    Attributes:
        reference: Index of the reference.
        limits: How much of the prompt is scored.
        mapped: See `__init__`.
        members: The log-probabilities, by member.
        common: Offsets of the boundaries that all members share, in ascending order.
        reads: By member, whether it reads the prompt.
        scored: By member, the indices of the tokens on which losses are computed.
        fit_positions: The members' distributions at fit positions.
    """

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        view: ReferenceView,
        ids: Sequence[list[int] | None],
        texts: Sequence[bytes],
        fit: bool,
        limits: FitLimits | None = None,
        mapped: Sequence[Pairing | None] = (),
        others: Mapping[int, Callable[[], ReferenceView]] | None = None,
        budgets: Sequence[int | None] = (),
    ) -> None:
        """Choose the tokens and positions to score.

        Args:
            vocabularies: By member.
            view: The reference, and the pairings that carry distributions to it.
            ids: By member, the tokens of the prompt; None for a member that does not read it.
            texts: The texts to score, in order; losses are computed on nothing else.
            fit: Whether distributions at fit positions are needed.
            limits: How much of the prompt is scored.
            mapped: By member, the pairing of a member that is fed the reference's ids: it is scored
                on the reference's tokens, through the pairing. None for a member that reads its own
                tokens; empty if all members do.
            others: By member, its view, for members that may become the reference later.
            budgets: By member, the most places at which it is scored; None for as many as the
                limits allow, empty if that holds for all. Pieces that it cannot afford are not
                scored, and fit positions are where the others begin, so that they cost nothing.
        """
        self.reference, self.limits = view.reference, limits or FitLimits()
        self.mapped = list(mapped) or [None] * len(vocabularies)
        self._others = dict(others or {})
        self.members = []
        for k, pairing in enumerate(self.mapped):
            source = k if pairing is None else self.reference
            own = ids[source] if ids[k] is not None else None
            spans = _spans(own, vocabularies[source], texts) if own else []
            self.members.append(MemberScores(own or [], spans))
        self.reads = [own is not None for own in ids]
        reading = [own for own, reads in zip(self.members, self.reads, strict=True) if reads]
        shared = set.intersection(*(set(own.boundaries) for own in reading))
        self.common = sorted(shared)
        self._texts, self._segments = list(texts), _segments(texts)
        self._budgets = list(budgets) or [None] * len(vocabularies)
        self._bounds = self._choose_pieces(self._segments)
        self.scored = [
            [index for index, _ in _in_pieces(own, self._bounds)] for own in self.members
        ]
        offsets = self._choose_positions(vocabularies) if fit else []
        counts = {o: tuple(own.boundaries[o] for own in self.members) for o in offsets}
        own_ids = [own.ids for own in self.members]
        self.fit_positions = FitPositions(
            view, counts, own_ids, self.limits.candidates, self._likely_views
        )

    @property
    def positions(self) -> list[int]:
        """Text offsets of the fit positions."""
        return self.fit_positions.offsets

    def _likely_views(self) -> list[ReferenceView]:
        """Views of the members that may become the reference.

        These are the member with the lowest loss among those that have read the whole text, and all
        members that are still reading.
        """
        losses = self.losses()
        able = [self.reference, *self._others]
        reading = [k for k in able if np.isnan(losses[k])]
        best = sorted(set(able) - set(reading), key=lambda k: float(losses[k]))[:1]
        return [self._others[k]() for k in (*best, *reading) if k != self.reference]

    def _choose_positions(self, vocabularies: Sequence[Vocabulary]) -> list[int]:
        """Offsets, evenly spread, where every member begins a token; the same for any reference."""
        starts = ({start for _, start, _ in own.spans} for own in self.members)
        usable = sorted(set(self.common).intersection(*starts))
        if any(budget is not None for budget in self._budgets):
            scored = {low for low, _ in self._bounds}
            usable = [offset for offset in usable if offset in scored]
        if self.limits.positions is None:
            return usable
        # The member with the largest vocabulary reads last, so its distributions are not held.
        widths = sorted(vocabulary.columns for vocabulary in vocabularies)
        room = FIT_BYTES // (4 * widths[-2 if len(widths) > 1 else -1])
        limit = min(self.limits.positions, max(32, room))
        return [usable[i] for i in _spread(len(usable), limit)]

    def _choose_pieces(self, segments: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Start and end of the pieces of text that are scored, evenly spread."""
        bounds = [
            (low, high)
            for low, high in pairwise(self.common)
            if any(start <= low and high <= end for start, end in segments)
        ]
        limit = len(bounds) if self.limits.pieces is None else self.limits.pieces
        chosen = _ranked(len(bounds))[:limit]
        for own, budget in zip(self.members, self._budgets, strict=True):
            if budget is not None:
                costs = Counter(piece for _, piece in _in_pieces(own, bounds))
                chosen = _affordable(chosen, costs, budget)
        return [bounds[i] for i in sorted(chosen)]

    def unscored(self, k: int) -> frozenset[int]:
        """The tokens on which member k is scored and whose log-probability is still unknown."""
        return frozenset(i for i in self.scored[k] if np.isnan(self.members[k].logps[i]))

    @property
    def places(self) -> list[int]:
        """By member, the number of places at which it is scored, known ones included."""
        return [
            len({*scored, *(own.boundaries[offset] for offset in self.positions)})
            for own, scored in zip(self.members, self.scored, strict=True)
        ]

    def callbacks(self) -> list[ReadCallback]:
        """By member, the callback for the prompt pass, for what is still unknown."""
        # A token's log-probability is computed after the token before it.
        return [
            ReadCallback(partial(self._record, k), self.unscored(k) | needed)
            for k, needed in enumerate(self.fit_positions.needed)
        ]

    def _record(self, k: int, counts: Sequence[int], logps: Tensor) -> None:
        """Record member k's distributions `[n, columns]` after `counts` of its tokens."""
        own, pairing = self.members[k], self.mapped[k]
        translated = logps if pairing is None else pairing.translate(logps)
        # No token follows the last one.
        rows = [at for at, count in enumerate(counts) if count < len(own.ids)]
        if rows:
            known = [counts[at] for at in rows]
            at = upload([rows, [own.ids[count] for count in known]], translated.device)
            own.add(known, translated[at[0], at[1]])
        self.fit_positions.add(k, counts, logps)

    def pieces(self) -> Weights:
        """Log-probabilities of the pieces of text, `[K, M]`, nats."""
        table = np.zeros((len(self.members), len(self._bounds)))
        for k, own in enumerate(self.members):
            for index, piece in _in_pieces(own, self._bounds):
                table[k, piece] += own.logps[index]
        return table

    def scored_pieces(self) -> list[ScoredPiece]:
        """The pieces of text that were scored, in order."""
        table = -self.pieces()
        table[~np.array(self.reads)] = np.nan
        inside = _in_pieces(self.members[self.reference], self._bounds)
        tokens = Counter(piece for _, piece in inside)
        return [
            ScoredPiece(self._slice(low, high), low, tokens[index], table[:, index])
            for index, (low, high) in enumerate(self._bounds)
        ]

    def _slice(self, low: int, high: int) -> bytes:
        """The bytes between two offsets inside of one text."""
        pairs = zip(self._texts, self._segments, strict=True)
        return next(t[low - start : high - start] for t, (start, end) in pairs if high <= end)

    def of_text(self, number: int) -> tuple[Weights, int]:
        """Log-probability of one of the texts `[K]`, nats, and the number of its scored bytes."""
        start, end = self._segments[number]
        own = [at for at, (low, _) in enumerate(self._bounds) if start <= low < end]
        size = sum(high - low for low, high in (self._bounds[at] for at in own))
        found: Weights = self.pieces()[:, own].sum(1)
        return found, size

    @property
    def tokens(self) -> int:
        """Number of reference tokens scored."""
        return len(self.scored[self.reference])

    @property
    def scored_bytes(self) -> int:
        """Number of bytes scored."""
        return sum(high - low for low, high in self._bounds)

    def losses(self, normalize: str = "reference") -> Weights:
        """Prompt losses `[K]`; 0 for a prompt without text, NaN for members that do not read it.

        Args:
            normalize: Unit: nats per token of the "reference", or per "own" token of the member.
        """
        shared = max(1, self.tokens)
        table = []
        for own, scored, reads in zip(self.members, self.scored, self.reads, strict=True):
            total = -float(np.sum(own.logps[scored])) if scored else 0.0 if reads else np.nan
            table.append(total / (max(1, len(scored)) if normalize == "own" else shared))
        return np.array(table)

    def evidence(self, normalize: str) -> Evidence:
        """What weights are fitted to; `normalize` as in `losses`."""
        scores, labels = self.fit_positions.stacked() if self.positions else (None, None)
        return Evidence(self.losses(normalize), self.tokens, self.pieces(), scores, labels)


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spread; most stay the same when `count` grows."""
    return sorted(_ranked(count)[:limit])


def _ranked(count: int) -> list[int]:
    """Indices in an order whose beginnings are evenly spread.

    The indices i are ranked by the fractional part of i times the golden ratio. The first of this
    ranking leave gaps of at most three sizes, and few of them change as the text grows.
    """
    ranks: list[int] = np.argsort(np.arange(count) * _GOLDEN % 1).tolist()
    return ranks


def _affordable(ranked: Sequence[int], costs: Mapping[int, int], budget: int) -> list[int]:
    """Those of the ranked pieces that fit into a budget together, the first ones first."""
    found: list[int] = []
    for piece in ranked:
        cost = costs.get(piece, 0)
        if cost <= budget:
            found.append(piece)
            budget -= cost
    return found


def _in_pieces(own: MemberScores, bounds: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """A member's tokens inside pieces of text: index of the token, index of its piece."""
    lows = np.array([low for low, _ in bounds])
    for index, start, end in own.spans if len(lows) else ():
        piece = int(np.searchsorted(lows, start, side="right")) - 1
        if piece >= 0 and end <= bounds[piece][1]:
            yield index, piece


def _segments(texts: Sequence[bytes]) -> list[tuple[int, int]]:
    """Start and end of each text in the shared offsets; a gap of one byte separates neighbors."""
    found, offset = [], 0
    for text in texts:
        found.append((offset, offset + len(text)))
        offset += len(text) + 1
    return found


def _spans(
    ids: Sequence[int], vocabulary: Vocabulary, texts: Sequence[bytes]
) -> list[tuple[int, int, int]]:
    """The tokens that lie wholly inside `texts`; the texts are searched for in order."""
    lengths = vocabulary.lengths[list(ids)]
    ends = np.cumsum(lengths)
    whole = vocabulary.decode(ids)
    found: list[tuple[int, int, int]] = []
    at = 0
    for text, (offset, _) in zip(texts, _segments(texts), strict=True):
        start = whole.find(text, at) if text else -1
        if start < 0:
            continue
        at = start + len(text)
        inside = np.flatnonzero((ends - lengths >= start) & (ends <= at) & (lengths > 0))
        shift = offset - start
        found += [(int(i), int(ends[i] - lengths[i]) + shift, int(ends[i]) + shift) for i in inside]
    return found
