"""UniTE's fusion: a mean of probabilities over the union of the members' best tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from packfuse.rules.base import Rule
from packfuse.rules.pools import arithmetic


class UniTE(Rule):
    """Mean of the members' probabilities, each renormalized on the union of all top-k tokens.

    Tokens outside the union get -inf. Only members with a weight, and only tokens that they allow,
    enter the union; a member without mass on the union abstains.
    """

    name: ClassVar[str] = "unite"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"
    pool: ClassVar[str] = "linear"

    k: int = Field(default=10, ge=1)
    """How many tokens each member proposes."""

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions; see `Rule.fuse`."""
        ids, repeated = self._union(logps, weights)
        proposed = logps.gather(-1, ids.expand(len(logps), -1, -1))
        pooled = arithmetic(proposed.masked_fill_(repeated, -torch.inf), weights)
        fused = logps.new_full(logps.shape[1:], -torch.inf)
        # the maximum drops the -inf of repetitions
        return fused.scatter_reduce_(-1, ids, pooled, "amax")

    def _union(self, logps: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids `[N, K·k]` in rising order, and which of them do not count."""
        size = logps.shape[-1]
        best = logps.topk(min(self.k, size), -1)
        unheard = torch.isneginf(best.values) | (weights.T.unsqueeze(-1) == 0)
        ids = best.indices.masked_fill(unheard, size).transpose(0, 1).flatten(1).sort(-1).values
        repeated = ids == size
        repeated[:, 1:] |= ids[:, 1:] == ids[:, :-1]
        return ids.clamp(max=size - 1), repeated
