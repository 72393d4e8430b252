"""Positions are fused where it is safe to, and where it can change anything."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from packfuse.fusion.gates.base import Gate


class Safe(Gate):
    """Open where all members stand at the end of a token and their first choices differ.

    Elsewhere somebody is asked in the middle of what he would write as one token, or all want the
    same.
    """

    name: ClassVar[str] = "safe"
    source: ClassVar[str] = "SAFE, arXiv 2510.15346"

    def opens(self, logps: Tensor, weights: Tensor, own: Tensor, together: Tensor) -> Tensor:
        """See `Gate`."""
        silent = weights.T == 0
        agreed = (logps.argmax(-1) == own.argmax(-1)) | silent.to(own.device)
        return together & ~agreed.all(0)
