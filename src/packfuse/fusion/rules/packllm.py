"""PackLLM's fusion: a weighted sum of logits."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.pools import geometric


class PackLLM(Rule):
    """`softmax(Σ w_k s_k)`: the members' logits, and so a geometric mean of their beliefs.

    A token needs some support from every member. Adding a constant to a member's logits changes
    nothing, so log-probabilities serve as logits.
    """

    name: ClassVar[str] = "packllm"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, section 3"
    pool: ClassVar[str] = "logit"

    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions; see `Rule.fuse`."""
        return geometric(logps, weights)
