"""Members that name few tokens: where the probability of all the others goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from packfuse.alignment.base import Pairing, stack
from packfuse.alignment.straddle import StraddleFilter

_POWER = 0.5
"""The power of the belief in proportion to which unnamed tokens share the probability. 0 spreads it
evenly; with 1 the reference would count twice. 0.5 measured better than both (dev/log.md)."""


class BelievedTail(Pairing):
    """A pairing that places what a member does not name by the reference's belief.

    The reference's distribution is carried to the member's vocabulary. Tokens that the member did
    not name share its remaining probability in proportion to the square root of that, and the
    completed distribution is carried by the usual pairing.
    """

    def __init__(self, pairing: Pairing, back: Pairing) -> None:
        """Complete the distributions that `pairing` carries; `back` carries from the reference."""
        self._pairing, self._back = pairing, back
        self.same_ids, self.lookahead = pairing.same_ids, pairing.lookahead
        self.exact, self.marks, self.window = pairing.exact, pairing.marks, pairing.window

    def map_ids(self, ids: Sequence[int]) -> list[int]:
        """See `Pairing.map_ids`."""
        return self._pairing.map_ids(ids)

    def map_control(self, index: int) -> list[int]:
        """See `Pairing.map_control`."""
        return self._pairing.map_control(index)

    def translate(self, logps: Tensor) -> Tensor:
        """See `Pairing.translate`; what is not named stays as it is."""
        return self._pairing.translate(logps)

    def used_ids(self) -> Tensor | None:
        """See `Pairing.used_ids`."""
        return self._pairing.used_ids()

    def straddle(self) -> StraddleFilter | None:
        """See `Pairing.straddle`."""
        return self._pairing.straddle()

    def carry(
        self,
        member: Sequence[Tensor | None],
        reference: Tensor,
        filters: Sequence[StraddleFilter | None],
    ) -> Tensor:
        """See `Pairing.carry`."""
        present = [index for index, row in enumerate(member) if row is not None]
        rows = list(member)
        if present:
            there = reference[present]
            own = stack([member[index] for index in present], reference)
            belief = self._back.carry(list(there), own, [None] * len(present))
            for index, row in zip(present, complete(own, belief), strict=True):
                rows[index] = row
        return self._pairing.carry(rows, reference, filters)


def complete(logps: Tensor, belief: Tensor) -> Tensor:
    """Distributions whose unnamed tokens share their probability by the root of a belief.

    Args:
        logps: Log-probabilities `[N, V]`, nats. The tokens that are not named have the lowest
            finite one of each row.
        belief: Log-probabilities `[N, V]`, nats, on the same device.

    Returns:
        Log-probabilities `[N, V]`, nats. A row stays as it is where the belief gives none of its
        unnamed tokens any probability.

    Example:
        >>> given = torch.tensor([[0.6, 0.2, 0.2]]).log()
        >>> complete(given, torch.tensor([[0.5, 0.1, 0.4]]).log()).exp()
        tensor([[0.6000, 0.1333, 0.2667]])
    """
    lowest = logps.masked_fill(logps.isneginf(), torch.inf).amin(-1, keepdim=True)
    unnamed = logps == lowest
    believed = (_POWER * belief).masked_fill(~unnamed, -torch.inf)
    total = believed.logsumexp(-1, keepdim=True)
    rest = lowest + unnamed.sum(-1, keepdim=True).log()
    return torch.where(unnamed & total.isfinite(), believed - total + rest, logps)
