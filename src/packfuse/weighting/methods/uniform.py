"""Equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from packfuse.weighting.methods.base import Evidence, Weighting, Weights, equal


class Uniform(Weighting):
    """Equal weights on every prompt.

    Example:
        >>> Uniform().for_members(["a", "b"])
        array([0.5, 0.5])
    """

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"
    needs_losses: ClassVar[bool] = False

    def for_members(self, names: Sequence[str]) -> Weights:
        """Equal weights `[K]`."""
        return equal(len(names))

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Equal weights; see `Weighting.fit`."""
        return equal(evidence.members)
