"""The members' distributions at the positions that weights are fitted to, compressed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from packfuse.alignment.base import ReferenceView
from packfuse.weighting.prefix_cache import FitKey, FitScore
from packfuse.weighting.topk import compress_topk, join_positions

_BLOCK = 16
"""Positions carried in one go."""


class FitPositions:
    """Scores at fitting positions, worked out there as soon as every member has spoken.

    Only what the others are still waited for with is held; nothing of the member that is read last.

    Attributes:
        offsets: The positions, as text offsets.
        wanted: By member, after how many of its tokens its distribution is asked for.
        parts: What is known.
        seconds: Time that it has taken.
    """

    def __init__(
        self,
        view: ReferenceView,
        counts: Mapping[int, tuple[int, ...]],
        ids: Sequence[Sequence[int]],
        candidates: int | None,
        others: Callable[[], Sequence[ReferenceView]] = tuple,
    ) -> None:
        """Wait for the members.

        Args:
            view: Whose scores are wanted.
            counts: By offset of a position, how many tokens each member has read there.
            ids: By member, the tokens that it reads; in a view, the reference's next is the label.
            candidates: Tokens of each member to tell apart; None for all of them.
            others: Further views to score from in passing; asked when the first position is ready.
        """
        self.view, self.seconds, self.offsets = view, 0.0, list(counts)
        self._counts, self._ids = dict(counts), list(ids)
        self._candidates, self._others = candidates, others
        self._views: list[ReferenceView] = []
        self.remember({})

    def remember(self, parts: Mapping[FitKey, FitScore]) -> None:
        """Take scores that are known; the members are not asked for them."""
        spots = {offset: self._spot(self.view, offset) for offset in self.offsets}
        self.parts = {spot: parts[spot] for spot in spots.values() if spot in parts}
        asked = [offset for offset, spot in spots.items() if spot not in parts]
        self._at = [{self._counts[o][k]: o for o in asked} for k in range(len(self._ids))]
        self.wanted = [frozenset(offsets) for offsets in self._at]
        self._waiting: dict[int, dict[int, Tensor]] = {offset: {} for offset in asked}

    def add(self, member: int, counts: Sequence[int], logps: Tensor) -> None:
        """Take what a member says after some numbers of its tokens, `[n, columns]` of its own."""
        started = time.perf_counter()
        ready: list[int] = []
        for count, row in zip(counts, logps, strict=True):
            offset = self._at[member].get(count)
            said = None if offset is None else self._waiting.get(offset)
            if offset is None or said is None:
                continue
            last = len(said.keys() | {member}) == len(self._ids)
            # As it is, a row keeps its whole block.
            said[member] = row if last else row.clone()
            ready += [offset] * last
        for start in range(0, len(ready), _BLOCK):
            self._score(ready[start : start + _BLOCK])
        self.seconds += time.perf_counter() - started

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Scores `[K, T, C]` and labels `[T]` of all positions, for the view that wants them."""
        return join_positions(
            [self.parts[self._spot(self.view, offset)] for offset in self.offsets]
        )

    def _score(self, offsets: Sequence[int]) -> None:
        """Carry and compress where every member has spoken, and forget what they said."""
        self._views = self._views or [self.view, *self._others()]
        said = [self._waiting.pop(offset) for offset in offsets]
        for view in self._views:
            spots = [self._spot(view, offset) for offset in offsets]
            reference_logps = torch.stack([rows[view.reference] for rows in said])
            carried = [
                pairing.carry([rows[k] for rows in said], reference_logps, [None] * len(said))
                for k, pairing in enumerate(view.pairings)
            ]
            labels = torch.tensor([spot.label for spot in spots])
            scores, known = compress_topk(torch.stack(carried), labels, self._candidates)
            for at, spot in enumerate(spots):
                here = slice(at, at + 1)
                self.parts[spot] = scores[:, here].clone(), known[here].clone()

    def _spot(self, view: ReferenceView, offset: int) -> FitKey:
        counts = self._counts[offset]
        label = self._ids[view.reference][counts[view.reference]]
        return FitKey((view.reference, view.alignment, self._candidates), label, counts)
