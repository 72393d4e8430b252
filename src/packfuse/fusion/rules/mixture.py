"""The mixture: a weighted mean of probabilities."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import arithmetic


class Mixture(Rule):
    """`Σ w_k p_k` over the whole vocabulary.

    One member that is confident enough can decide the next token.

    Example:
        >>> import torch
        >>> logps = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]]]).log()
        >>> Mixture().fuse(logps, torch.tensor([[0.75, 0.25]])).exp()
        tensor([[0.6500, 0.3500]])
    """

    name: ClassVar[str] = "mixture"
    source: ClassVar[str] = "the linear pool; over whole vocabularies: GaC, arXiv 2406.12585"
    pool: ClassVar[str] = "linear"

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """See `Rule.fuse`."""
        return arithmetic(logps, weights)
