"""The mixture over the hypotheses of straddle filters, computed where the distributions are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from packfuse.alignment.straddle import StraddleFilter
from packfuse.transfer import upload


def mix_straddles(
    carried: Tensor,
    reference_probs: Tensor,
    cut: Sequence[bool],
    filters: Sequence[StraddleFilter | None],
) -> Tensor:
    """The member's next distributions in the reference's vocabulary, N rows at once.

    Args:
        carried: The member's distributions at the cut, carried: probabilities
            `[N, reference columns]`.
        reference_probs: The reference's own probabilities, `[N, reference columns]`.
        cut: Whether there is a cut, by row; `carried` is not used where there is none.
        filters: The filter of each row; None for a row without straddles.

    Returns:
        Probabilities `[N, reference columns]`; each row that has straddles, or no cut, sums to one.
        A row of which no hypothesis has any mass is the reference's.
    """
    rows = [
        (index, straddle)
        for index, (there, straddle) in enumerate(zip(cut, filters, strict=True))
        if not there or (straddle is not None and not straddle.trivial)
    ]
    if not rows:
        return carried
    device, everywhere = carried.device, len(rows) == len(cut)
    weights = [straddle.cut if straddle and cut[index] else 0.0 for index, straddle in rows]
    scale = upload([[weight] for weight in weights], device, carried.dtype)
    at = None if everywhere else upload([index for index, _ in rows], device)
    own = carried if at is None else carried.index_select(0, at)
    reference = reference_probs if at is None else reference_probs.index_select(0, at)
    mixed = own * (scale / own.sum(-1, keepdim=True).clamp_min(1e-30))
    if not all(weights):
        # What is carried without a cut may be anything.
        mixed = torch.where(scale > 0, mixed, 0.0)
    _add_straddles(mixed, reference, [straddle for _, straddle in rows])
    total = mixed.sum(-1, keepdim=True)
    mixed = torch.where(total > 0, mixed / total, reference)
    return mixed if at is None else carried.index_copy(0, at, mixed)


def _add_straddles(
    mixed: Tensor, reference_probs: Tensor, filters: Sequence[StraddleFilter | None]
) -> None:
    """Add the mass of each straddle, split by the reference among its continuations, in place."""
    columns, device = reference_probs.shape[-1], mixed.device
    found = [
        (row, *straddle.options, list(straddle.alive.values()))
        for row, straddle in enumerate(filters)
        if straddle is not None and straddle.alive
    ]
    if not found:
        return
    sizes = np.concatenate([sizes for _, _, _, sizes, _ in found])
    group = np.repeat(np.arange(len(sizes)), sizes)
    places = np.concatenate([row * columns + ids for row, ids, _, _, _ in found])
    where, group_of = upload(torch.from_numpy(np.stack([places, group])), device)
    floors = np.concatenate([floors for _, _, floors, _, _ in found])
    masses = np.concatenate([masses for _, _, _, _, masses in found]).astype(np.float32)
    numbers = upload(torch.from_numpy(np.concatenate([floors, masses])), device)
    floor, mass = numbers.split([len(floors), len(masses)])
    probs = reference_probs.flatten().index_select(0, where) + floor
    total = torch.zeros_like(mass).index_add_(0, group_of, probs)
    scale = torch.where(total > 0, mass / total, 0.0)
    mixed.view(-1).index_add_(0, where, probs * scale.index_select(0, group_of))
