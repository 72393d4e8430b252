"""Prompt scores over a few candidates instead of a whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

FLOOR = 1e-6
"""Smallest mass a tail is given: float32 cannot tell less from rounding."""


def compress_topk(logps: Tensor, labels: Tensor, top: int | None) -> tuple[Tensor, Tensor]:
    """Keep each member's best tokens and the label, and fold all others into one column.

    With S the tokens left out at a position and w the weights, Hölder's inequality bounds what
    they add to a logit pool's normalizer:

        Σ_{c in S} Π_k p_k(c)^w_k  ≤  Π_k (Σ_{c in S} p_k(c))^w_k

    The right side is what the last column contributes. So the pool's loss on the compressed scores
    is never below the loss on all of them (up to rounding and `FLOOR`), it is equal where one
    member has all the weight, and it exceeds it by at most `log(1 + tail / kept)`, the right side
    over the mass that the pool keeps.

    Args:
        logps: Normalized log-probabilities `[K, T, V]`, nats.
        labels: `[T]` the token that came next.
        top: How many tokens of each member to keep at each position; None keeps everything.

    Returns:
        Scores `[K, T, C]` and labels `[T]` among the C candidates. Candidates differ by position.
        Columns of -inf fill short rows and count for nothing; the last column is the rest.
    """
    size = logps.shape[-1]
    if top is None or top >= size:
        return logps, labels
    labels = labels.to(logps.device)
    best = logps.topk(top, -1).indices.transpose(0, 1).flatten(1)
    ids = _distinct(torch.cat([best, labels.unsqueeze(-1)], -1), size)
    scores = logps.gather(-1, ids.clamp(max=size - 1).expand(len(logps), -1, -1))
    scores.masked_fill_(ids == size, -torch.inf)
    rest = (1 - scores.exp().sum(-1, keepdim=True)).clamp(min=FLOOR).log()
    return torch.cat([scores, rest], -1), (ids < labels.unsqueeze(-1)).sum(-1)


def join_positions(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The results of `compress_topk` for consecutive chunks of positions, as one."""
    width = max(scores.shape[-1] for scores, _ in parts)
    gaps = [width - scores.shape[-1] for scores, _ in parts]
    filled = [
        pad(scores, (gap, 0), value=-torch.inf)
        for (scores, _), gap in zip(parts, gaps, strict=True)
    ]
    moved = [labels + gap for (_, labels), gap in zip(parts, gaps, strict=True)]
    return torch.cat(filled, 1), torch.cat(moved)


def _distinct(ids: Tensor, size: int) -> Tensor:
    """The distinct ids of each row in rising order; rows are filled up with `size`."""
    ids = ids.sort(-1).values
    ids[:, 1:] = ids[:, 1:].masked_fill(ids[:, 1:] == ids[:, :-1], size)
    ids = ids.sort(-1).values
    width = int((ids < size).sum(-1).amax()) if len(ids) else 0
    return ids[:, :width]
