"""The two ways to pool distributions that the fusion rules are made of."""

from __future__ import annotations

import torch
from torch import Tensor

LAST_RESORT = -1e4
"""Nats: so much less likely that it counts only where nothing else is left."""


def arithmetic(logps: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted arithmetic mean of K distributions.

    Every member is normalized first, so only the shape of its row counts. A member whose whole row
    is -inf abstains and leaves its weight to the others.

    Args:
        logps: `[K, N, V]` log-probabilities in nats, up to a constant in each row.
        weights: `[N, K]`, non-negative; a member with weight 0 is not looked at.

    Returns:
        Normalized log-probabilities `[N, V]`; all -inf where no member allows anything.
    """
    total = logps.new_full(logps.shape[1:], -torch.inf)
    heard = logps.new_zeros(logps.shape[1], 1)
    for member, weight in zip(logps, weights.to(logps).T.unsqueeze(-1), strict=True):
        mass = torch.logsumexp(member, -1, keepdim=True)
        silent = (weight == 0) | torch.isneginf(mass)
        share = (member + (weight.log() - mass)).masked_fill_(silent, -torch.inf)
        total = torch.logaddexp(total, share)
        heard += weight.masked_fill(silent, 0)
    return total - heard.log().masked_fill_(heard == 0, 0)


def geometric(logps: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted geometric mean of K distributions, renormalized.

    A token that any weighted member forbids (-inf) is forbidden. Where that leaves nothing at all,
    the members contradict each other and the row takes their arithmetic mean instead.

    Args:
        logps: `[K, N, V]` log-probabilities in nats, up to a constant in each row.
        weights: `[N, K]`, non-negative; a member with weight 0 is not looked at.

    Returns:
        Normalized log-probabilities `[N, V]`; all -inf where no member allows anything.
    """
    pooled = logps.new_zeros(logps.shape[1:])
    for member, weight in zip(logps, weights.to(logps).T.unsqueeze(-1), strict=True):
        # 0 · -inf would be NaN
        pooled += (member * weight).masked_fill_(weight == 0, 0)
    mass = torch.logsumexp(pooled, -1, keepdim=True)
    empty = torch.isneginf(mass)
    pooled -= mass
    if empty.any():
        pooled = torch.where(empty, arithmetic(logps, weights), pooled)
    return pooled


def backed(fused: Tensor, logps: Tensor, weights: Tensor) -> Tensor:
    """A fused distribution that leaves nothing out: last come the tokens that a rule dropped.

    A rule may give all its mass to a few tokens (UniTE: to the union of the members' best), and a
    constraint may forbid just those. Then the members' arithmetic mean decides among the rest.

    Args:
        fused: `[N, V]` log-probabilities of the rule, nats.
        logps: `[K, N, V]` what the members said, as in `arithmetic`.
        weights: `[N, K]`, as in `arithmetic`.

    Returns:
        `[N, V]`: `fused` where it is finite, and `LAST_RESORT` lower the mean of the members.
    """
    dropped = torch.isneginf(fused)
    if not dropped.any():
        return fused
    return torch.where(dropped, arithmetic(logps, weights) + LAST_RESORT, fused)
