"""The members' distributions at the fit positions of a prompt, compressed to a few tokens.

A fit position is an offset in the prompt's text where every member begins a token. Weights are
fitted to the members' next-token distributions at these positions, carried to the reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from packfuse.alignment.base import ReferenceView
from packfuse.transfer import upload

FitScore = tuple[Tensor, Tensor]
"""Compressed log-probabilities of one position, `[K, 1, C]`, nats, and its label, `[1]`."""

MIN_TAIL = 1e-6
"""Smallest probability of the tokens left out, together: below it float32 has only rounding."""

_BLOCK, _BLOCK_ON_DEVICE = 16, 64
"""Number of positions that are carried to the reference in one call: on processors, elsewhere."""


class FitKey(NamedTuple):
    """What the compressed log-probabilities of one fit position depend on, besides the text.

    Attributes:
        view: The reference, the alignment, and the number of candidates.
        label: The reference's next token.
        counts: By member, the number of its tokens before the position.
    """

    view: tuple[int, str, int | None]
    label: int
    counts: tuple[int, ...]


class FitPositions:
    """Collects distributions at fit positions; a position is compressed when all members read it.

    Until then the distributions of the members that have read the position are held in memory. The
    distributions of the member that reads last are never held.

    Attributes:
        offsets: The fit positions, as offsets in the text.
        needed: By member, the numbers of tokens after which its distribution is needed.
        scores: The compressed log-probabilities so far.
        seconds: Time spent here.
    """

    def __init__(
        self,
        view: ReferenceView,
        counts: Mapping[int, tuple[int, ...]],
        ids: Sequence[Sequence[int]],
        candidates: int | None,
        others: Callable[[], Sequence[ReferenceView]] = tuple,
    ) -> None:
        """Start without any distributions.

        Args:
            view: The reference, and the pairings that carry distributions to it.
            counts: By offset of a position, the number of tokens of each member before it.
            ids: By member, the tokens that it reads. The reference's next token is the label.
            candidates: Number of tokens of each member to keep at a position; None for all.
            others: Returns further views to compute scores for. Called once, when the first
                position is complete.
        """
        self.view, self.seconds, self.offsets = view, 0.0, list(counts)
        self._counts, self._ids = dict(counts), list(ids)
        self._candidates, self._others = candidates, others
        self._views: list[ReferenceView] = []
        self.reuse({})

    def reuse(self, scores: Mapping[FitKey, FitScore]) -> None:
        """Start from scores of earlier prompts; distributions at their positions are not needed."""
        keys = {offset: self._key(self.view, offset) for offset in self.offsets}
        self.scores = {key: scores[key] for key in keys.values() if key in scores}
        missing = [offset for offset, key in keys.items() if key not in scores]
        self._at = [{self._counts[o][k]: o for o in missing} for k in range(len(self._ids))]
        self.needed = [frozenset(offsets) for offsets in self._at]
        self._pending: dict[int, dict[int, Tensor]] = {offset: {} for offset in missing}

    def add(self, member: int, counts: Sequence[int], logps: Tensor) -> None:
        """Add distributions of one member.

        Args:
            member: Index of the member.
            counts: After how many of its tokens each distribution was computed, `n` numbers.
            logps: Log-probabilities `[n, member columns]`, nats.
        """
        started = time.perf_counter()
        found = ((at, self._at[member].get(count)) for at, count in enumerate(counts))
        here = [(at, own) for at, own in found if own is not None and own in self._pending]
        complete = [
            own for _, own in here if len(self._pending[own].keys() | {member}) == len(self._ids)
        ]
        waiting = {own for _, own in here}.difference(complete)
        held = [(at, own) for at, own in here if own in waiting]
        if held:
            # One copy: rows of `logps` itself would keep all of it in memory.
            rows = logps.index_select(0, upload([at for at, _ in held], logps.device))
            for row, (_, offset) in zip(rows, held, strict=True):
                self._pending[offset][member] = row
        for at, offset in here:
            self._pending[offset].setdefault(member, logps[at])
        size = _BLOCK if logps.device.type == "cpu" else _BLOCK_ON_DEVICE
        for start in range(0, len(complete), size):
            self._compress(complete[start : start + size])
        self.seconds += time.perf_counter() - started

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Scores `[K, T, C]` and labels `[T]` of all positions, under the own view."""
        return join_positions(
            [self.scores[self._key(self.view, offset)] for offset in self.offsets]
        )

    def _compress(self, offsets: Sequence[int]) -> None:
        """Carry and compress complete positions, under every view, and free their distributions."""
        self._views = self._views or [self.view, *self._others()]
        complete = [self._pending.pop(offset) for offset in offsets]
        for view in self._views:
            keys = [self._key(view, offset) for offset in offsets]
            reference_logps = torch.stack([rows[view.reference] for rows in complete])
            carried = [
                pairing.carry([rows[k] for rows in complete], reference_logps, [None] * len(keys))
                for k, pairing in enumerate(view.pairings)
            ]
            labels = torch.tensor([key.label for key in keys])
            scores, labels = compress_topk(torch.stack(carried), labels, self._candidates)
            if self._candidates is not None:
                # A few numbers, which weights are fitted to on the host.
                scores, labels = scores.cpu(), labels.cpu()
            for at, key in enumerate(keys):
                here = slice(at, at + 1)
                self.scores[key] = scores[:, here].clone(), labels[here].clone()

    def _key(self, view: ReferenceView, offset: int) -> FitKey:
        counts = self._counts[offset]
        label = self._ids[view.reference][counts[view.reference]]
        return FitKey((view.reference, view.alignment, self._candidates), label, counts)


def compress_topk(logps: Tensor, labels: Tensor, top: int | None) -> tuple[Tensor, Tensor]:
    """Keep each member's most probable tokens and the label; all other tokens become one candidate.

    With S the tokens left out at a position and w the weights, Hölder's inequality bounds what
    they add to the normalizer of a logit pool:

        Σ_{c in S} Π_k p_k(c)^w_k  ≤  Π_k (Σ_{c in S} p_k(c))^w_k

    The right side is what the last candidate adds. So the pool's loss on the compressed scores is
    never below the loss on the whole vocabulary (up to rounding and `MIN_TAIL`). Both losses are
    equal where one member has all the weight. They differ by at most `log(1 + tail / kept)`: the
    right side over the probability that the pool gives to the kept tokens.

    Args:
        logps: Normalized log-probabilities `[K, T, V]`, nats.
        labels: The token that comes next, `[T]`.
        top: Number of tokens of each member to keep at each position; None keeps everything.

    Returns:
        Scores `[K, T, C]`, and the labels' indices among the C candidates, `[T]`. Candidates differ
        by position. Positions with fewer candidates are padded with -inf, which has no effect; the
        last candidate stands for all tokens left out.
    """
    size = logps.shape[-1]
    if top is None or top >= size:
        return logps, labels
    labels = labels.to(logps.device)
    best = logps.topk(top, -1).indices.transpose(0, 1).flatten(1)
    ids = _distinct(torch.cat([best, labels.unsqueeze(-1)], -1), size)
    scores = logps.gather(-1, ids.clamp(max=size - 1).expand(len(logps), -1, -1))
    scores.masked_fill_(ids == size, -torch.inf)
    tail = (1 - scores.exp().sum(-1, keepdim=True)).clamp(min=MIN_TAIL).log()
    return torch.cat([scores, tail], -1), (ids < labels.unsqueeze(-1)).sum(-1)


def join_positions(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join results of `compress_topk` for consecutive positions, padded to one width."""
    width = max(scores.shape[-1] for scores, _ in parts)
    gaps = [width - scores.shape[-1] for scores, _ in parts]
    padded = [
        pad(scores, (gap, 0), value=-torch.inf)
        for (scores, _), gap in zip(parts, gaps, strict=True)
    ]
    moved = [labels + gap for (_, labels), gap in zip(parts, gaps, strict=True)]
    return torch.cat(padded, 1), torch.cat(moved)


def _distinct(ids: Tensor, size: int) -> Tensor:
    """The distinct ids of each row in ascending order; shorter rows are padded with `size`."""
    ids = ids.sort(-1).values
    ids[:, 1:] = ids[:, 1:].masked_fill(ids[:, 1:] == ids[:, :-1], size)
    ids = ids.sort(-1).values
    width = int((ids < size).sum(-1).amax()) if len(ids) else 0
    return ids[:, :width]
