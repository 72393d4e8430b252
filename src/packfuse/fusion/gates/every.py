"""Every position is fused."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.gates.base import Gate


class Every(Gate):
    """Open everywhere, as in the papers on fusing tokens."""

    name: ClassVar[str] = "every"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531; UniTE, arXiv 2410.03777"

    def opens(self, logps: Tensor, weights: Tensor, own: Tensor, together: Tensor) -> Tensor:
        """See `Gate`."""
        return together | True
