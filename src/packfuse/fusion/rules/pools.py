"""The arithmetic and the geometric mean of distributions, from which the rules are built."""

from __future__ import annotations

import torch
from torch import Tensor

LAST_RESORT = -1e4
"""Nats that are added to the log-probabilities of tokens outside a rule's support."""


def arithmetic(logps: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted arithmetic mean of K distributions.

    Every row is normalized first. A member whose row is -inf everywhere abstains: the mean is that
    of the others, with their weights scaled to sum to one.

    Args:
        logps: `[K, N, V]` log-probabilities, nats, up to a constant in each row.
        weights: `[N, K]`, non-negative. A member with weight 0 has no effect.

    Returns:
        Normalized log-probabilities `[N, V]`, nats; -inf everywhere if all members abstain.

    Example:
        >>> logps = torch.tensor([[[0.5, 0.5]], [[0.0, 0.0]]]).log()  # the second abstains
        >>> arithmetic(logps, torch.tensor([[0.1, 0.9]])).exp()
        tensor([[0.5000, 0.5000]])
    """
    total = logps.new_full(logps.shape[1:], -torch.inf)
    counted = logps.new_zeros(logps.shape[1], 1)
    for member, weight in zip(logps, weights.to(logps).T.unsqueeze(-1), strict=True):
        mass = torch.logsumexp(member, -1, keepdim=True)
        ignored = (weight == 0) | torch.isneginf(mass)
        share = (member + (weight.log() - mass)).masked_fill_(ignored, -torch.inf)
        total = torch.logaddexp(total, share)
        counted += weight.masked_fill(ignored, 0)
    return total - counted.log().masked_fill_(counted == 0, 0)


def geometric(logps: Tensor, weights: Tensor) -> Tensor:
    """Log of the weighted geometric mean of K distributions, normalized.

    A token to which any member with a weight gives -inf has -inf. If no token is left at a
    position, the row is the members' arithmetic mean instead.

    Args:
        logps: `[K, N, V]` log-probabilities, nats, up to a constant in each row.
        weights: `[N, K]`, non-negative. A member with weight 0 has no effect.

    Returns:
        Normalized log-probabilities `[N, V]`, nats; -inf everywhere if all members abstain.

    Example:
        >>> logps = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> geometric(logps, torch.tensor([[0.5, 0.5]])).exp()
        tensor([[0.5000, 0.5000]])
    """
    pooled = logps.new_zeros(logps.shape[1:])
    for member, weight in zip(logps, weights.to(logps).T.unsqueeze(-1), strict=True):
        # 0 · -inf would be NaN
        pooled += (member * weight).masked_fill_(weight == 0, 0)
    mass = torch.logsumexp(pooled, -1, keepdim=True)
    empty = torch.isneginf(mass)
    pooled -= mass
    if may_hold(empty):
        pooled = torch.where(empty, arithmetic(logps, weights), pooled)
    return pooled


def may_hold(flags: Tensor) -> bool:
    """Whether some of the flags may be true: on processors whether they are.

    On other devices the host would have to wait for them, which takes longer than to go on as if.
    """
    return flags.device.type != "cpu" or bool(flags.any())


def with_full_support(fused: Tensor, logps: Tensor, weights: Tensor) -> Tensor:
    """The fused distribution with a fallback for tokens outside the rule's support.

    A rule may give -inf to most tokens (UniTE: to all outside the union of the members' top-k), and
    a constraint may forbid all that is left. Then the members' arithmetic mean ranks the others.

    Args:
        fused: `[N, V]` fused log-probabilities, nats.
        logps: `[K, N, V]` the members' log-probabilities, as in `arithmetic`.
        weights: `[N, K]`, as in `arithmetic`.

    Returns:
        `[N, V]`: `fused` where it is finite, elsewhere the mean plus `LAST_RESORT`.
    """
    dropped = torch.isneginf(fused)
    if not may_hold(dropped):
        return fused
    return torch.where(dropped, arithmetic(logps, weights) + LAST_RESORT, fused)
