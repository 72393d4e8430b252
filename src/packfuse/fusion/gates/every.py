"""The gate that fuses every position."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from packfuse.fusion.gates.base import Gate, Positions


class Every(Gate):
    """Open at every position, as in the papers on token-level fusion."""

    name: ClassVar[str] = "every"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531; UniTE, arXiv 2410.03777"

    def opens(
        self, logps: Tensor, weights: Tensor, reference_logps: Tensor, at_boundary: Tensor
    ) -> Tensor:
        """See `Gate.opens`."""
        return at_boundary | True

    def decide(self, at: Positions, fused: Callable[[], Tensor]) -> tuple[Tensor, list[bool]]:
        """See `Gate.decide`; no operation, and no wait for the device."""
        return fused(), [True] * len(at.weights)
