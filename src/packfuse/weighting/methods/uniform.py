"""Equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from packfuse.weighting.methods.base import Evidence, Weighting, Weights, equal


class Uniform(Weighting):
    """Every member counts the same, on every prompt."""

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"
    needs_losses: ClassVar[bool] = False

    def for_members(self, names: Sequence[str]) -> Weights:
        """The same weight for every name."""
        return equal(len(names))

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The same weight for every member."""
        return equal(evidence.members)
