"""Positions are fused where the reference is unsure."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from packfuse.fusion.gates.base import Gate


class Threshold(Gate):
    """Open where the reference gives its first choice less than `least`.

    Attributes:
        least: Probability from which on the reference speaks alone.
    """

    name: ClassVar[str] = "threshold"
    source: ClassVar[str] = "GaC, arXiv 2406.12585, section 3"

    least: float = Field(default=0.5, gt=0, le=1)

    def opens(self, logps: Tensor, weights: Tensor, own: Tensor, together: Tensor) -> Tensor:
        """See `Gate`."""
        return own.amax(-1) < math.log(self.least)
