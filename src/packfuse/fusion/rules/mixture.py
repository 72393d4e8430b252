"""The plain mixture: a weighted mean of probabilities."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import arithmetic


class Mixture(Rule):
    """`Σ w_k p_k` over the whole vocabulary: one confident member can be enough for a token."""

    name: ClassVar[str] = "mixture"
    source: ClassVar[str] = "the linear opinion pool; over whole vocabularies: arXiv 2406.12585"
    pool: ClassVar[str] = "linear"

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions; see `Rule.fuse`."""
        return arithmetic(logps, weights)
