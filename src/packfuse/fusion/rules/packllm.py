"""The fusion rule of PackLLM: a weighted sum of logits."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import geometric


class PackLLM(Rule):
    """`softmax(Σ w_k s_k)` of the members' logits s_k: a geometric mean of their distributions.

    A token needs some probability from every member. A constant added to a member's logits has no
    effect, so log-probabilities are used in place of logits.

    Example:
        >>> import torch
        >>> logps = torch.tensor([[[0.8, 0.2, 0.0]], [[0.2, 0.4, 0.4]]]).log()
        >>> PackLLM().fuse(logps, torch.tensor([[0.5, 0.5]])).exp()
        tensor([[0.5858, 0.4142, 0.0000]])
    """

    name: ClassVar[str] = "packllm"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, section 3"
    pool: ClassVar[str] = "logit"

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """See `Rule.fuse`."""
        return geometric(logps, weights)
