"""What the members made of a prompt: losses and fitting scores, gathered while they read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from packfuse.alignment.base import Pairing, ReferenceView
from packfuse.models.member import ReadCallback
from packfuse.text.vocabulary import Vocabulary
from packfuse.weighting.fit_positions import FitPositions
from packfuse.weighting.methods.base import Evidence, FitLimits, Weights

FIT_BYTES = 48 * 2**20
"""Memory for what one member said at fitting positions, where their number is limited."""

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(slots=True)
class MemberScores:
    """One member's reading of the prompt.

    Attributes:
        ids: Its tokens of the whole prompt; for a mapped member, the reference's.
        spans: (index, start, end) of the tokens that lie inside the scored texts.
        logps: Log-probability of each token given those before it; NaN where there is none.
        boundaries: Token count by text offset, where the member both ends a token and predicts the
            next.
    """

    ids: list[int]
    spans: list[tuple[int, int, int]]
    logps: Weights
    boundaries: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        """Find the boundaries; where texts meet, what comes after counts."""
        starts = {start: index for index, start, _ in self.spans if index}
        ends = {end: index + 1 for index, _, end in self.spans}
        self.boundaries = {**ends, **starts}


class PromptScores:
    """Scores one prompt with every member, in the pass that generation needs anyway.

    Attributes:
        reference: Which member is the reference.
        members: By member.
        fits: Scores at fitting positions.
        scored: By member, which of its tokens losses are taken on.
    """

    def __init__(
        self,
        vocabularies: Sequence[Vocabulary],
        view: ReferenceView,
        ids: Sequence[list[int]],
        texts: Sequence[bytes],
        fit: bool,
        limits: FitLimits | None = None,
        mapped: Sequence[Pairing | None] = (),
        others: Mapping[int, Callable[[], ReferenceView]] | None = None,
    ) -> None:
        """Plan what to look at.

        Args:
            vocabularies: By member.
            view: The reference, and how members are carried to it.
            ids: The prompt in every member's tokens.
            texts: The words to score, in order; losses are taken on nothing else.
            fit: Whether scores at fitting positions are wanted.
            limits: How many of them.
            mapped: By member, the pairing of one that reads the reference's ids one for one: it
                is asked for the same tokens as the reference, through the pairing. None for
                members that read their own tokens; nothing if all do.
            others: By member, its view, if it may become the reference after this reading.
        """
        self.reference, self.limits = view.reference, limits or FitLimits()
        self.mapped = list(mapped) or [None] * len(vocabularies)
        self._others = dict(others or {})
        self.members = []
        for k, pairing in enumerate(self.mapped):
            asked = k if pairing is None else self.reference
            own, spans = ids[asked], _spans(ids[asked], vocabularies[asked], texts)
            self.members.append(MemberScores(own, spans, np.full(len(own), np.nan)))
        shared = set.intersection(*(set(side.boundaries) for side in self.members))
        self.common = sorted(shared)
        self._edges = self._pieces(_segments(texts))
        self.scored = [[index for index, _ in self._placed(side)] for side in self.members]
        offsets = self._fit_positions(vocabularies) if fit else []
        counts = {o: tuple(side.boundaries[o] for side in self.members) for o in offsets}
        own_ids = [side.ids for side in self.members]
        self.fits = FitPositions(view, counts, own_ids, self.limits.candidates, self._likely)

    @property
    def positions(self) -> list[int]:
        """Text offsets at which weights are fitted."""
        return self.fits.offsets

    def _likely(self) -> list[ReferenceView]:
        """Views of who may turn out best: the best that has read the text, or who still reads."""
        losses = self.losses()
        able = [self.reference, *self._others]
        reading = [k for k in able if np.isnan(losses[k])]
        best = sorted(set(able) - set(reading), key=lambda k: float(losses[k]))[:1]
        return [self._others[k]() for k in (*best, *reading) if k != self.reference]

    def _fit_positions(self, vocabularies: Sequence[Vocabulary]) -> list[int]:
        """Offsets, evenly spread, where every member begins a token, whoever is the reference."""
        starts = ({start for _, start, _ in side.spans} for side in self.members)
        usable = sorted(set(self.common).intersection(*starts))
        if self.limits.positions is None:
            return usable
        # Nothing of the widest is held, for it is read last.
        widths = sorted(vocabulary.columns for vocabulary in vocabularies)
        room = FIT_BYTES // (4 * widths[-2 if len(widths) > 1 else -1])
        most = min(self.limits.positions, max(32, room))
        return [usable[i] for i in _spread(len(usable), most)]

    def _pieces(self, segments: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the pieces of text lie that losses are taken on: between common boundaries."""
        edges = [
            (low, high)
            for low, high in pairwise(self.common)
            if any(start <= low and high <= end for start, end in segments)
        ]
        most = self.limits.pieces
        return edges if most is None else [edges[i] for i in _spread(len(edges), most)]

    def _placed(self, side: MemberScores) -> Iterator[tuple[int, int]]:
        """A member's tokens in those pieces, with which piece each is in."""
        lows = np.array([low for low, _ in self._edges])
        for index, start, end in side.spans if len(lows) else ():
            piece = int(np.searchsorted(lows, start, side="right")) - 1
            if piece >= 0 and end <= self._edges[piece][1]:
                yield index, piece

    def unscored(self, k: int) -> frozenset[int]:
        """Which of the tokens that member k is scored on have no log-probability yet."""
        return frozenset(i for i in self.scored[k] if np.isnan(self.members[k].logps[i]))

    def callbacks(self) -> list[ReadCallback]:
        """One visitor by member for the prompt pass, for what is not known yet."""
        # A token's log-probability is heard when the one before it has been read.
        return [
            ReadCallback(partial(self._see, k), self.unscored(k) | wanted)
            for k, wanted in enumerate(self.fits.wanted)
        ]

    def _see(self, k: int, counts: Sequence[int], logps: Tensor) -> None:
        side, pairing = self.members[k], self.mapped[k]
        own = logps if pairing is None else pairing.translate(logps)
        # Nothing follows the last token.
        rows = [at for at, count in enumerate(counts) if count < len(side.ids)]
        if rows:
            known = [counts[at] for at in rows]
            chosen = torch.tensor([side.ids[count] for count in known], device=own.device)
            side.logps[known] = own[rows, chosen].double().cpu().numpy()
        self.fits.add(k, counts, logps)

    def pieces(self) -> Weights:
        """Log-probability of the pieces of text that losses are taken on, `[K, M]`, nats."""
        table = np.zeros((len(self.members), len(self._edges)))
        for k, side in enumerate(self.members):
            for index, piece in self._placed(side):
                table[k, piece] += side.logps[index]
        return table

    @property
    def tokens(self) -> int:
        """Reference tokens scored."""
        return len(self.scored[self.reference])

    @property
    def scored_bytes(self) -> int:
        """Bytes of text scored."""
        return sum(high - low for low, high in self._edges)

    def losses(self, normalize: str = "reference") -> Weights:
        """Prompt loss by member, nats per reference token or per `"own"` token; 0 for no text."""
        shared = max(1, self.tokens)
        table = []
        for k, side in enumerate(self.members):
            scored = self.scored[k]
            total = -float(np.sum(side.logps[scored])) if scored else 0.0
            table.append(total / (max(1, len(scored)) if normalize == "own" else shared))
        return np.array(table)

    def evidence(self, normalize: str) -> Evidence:
        """Everything that a weighting may want."""
        scores, labels = self.fits.stacked() if self.positions else (None, None)
        return Evidence(self.losses(normalize), self.tokens, self.pieces(), scores, labels)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `count` indices, spread evenly, and the same ones when `count` grows.

    The fractional parts of i times the golden ratio rank them: the first of that ranking leave gaps
    of three sizes, and few of them change as the text grows.
    """
    if count <= most:
        return list(range(count))
    ranks = np.argsort(np.arange(count) * _GOLDEN % 1)
    found: list[int] = sorted(ranks[:most].tolist())
    return found


def _segments(texts: Sequence[bytes]) -> list[tuple[int, int]]:
    """Where each text lies in the shared offsets; a gap of one keeps neighbors apart."""
    found, offset = [], 0
    for text in texts:
        found.append((offset, offset + len(text)))
        offset += len(text) + 1
    return found


def _spans(
    ids: Sequence[int], vocabulary: Vocabulary, texts: Sequence[bytes]
) -> list[tuple[int, int, int]]:
    """The tokens that lie wholly inside `texts`, which are looked for in order."""
    lengths = vocabulary.lengths[list(ids)]
    ends = np.cumsum(lengths)
    whole = vocabulary.decode(ids)
    found: list[tuple[int, int, int]] = []
    at = 0
    for text, (offset, _) in zip(texts, _segments(texts), strict=True):
        place = whole.find(text, at) if text else -1
        if place < 0:
            continue
        at = place + len(text)
        inside = np.flatnonzero((ends - lengths >= place) & (ends <= at) & (lengths > 0))
        shift = offset - place
        found += [(int(i), int(ends[i] - lengths[i]) + shift, int(ends[i]) + shift) for i in inside]
    return found
