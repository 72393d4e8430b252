"""All trust in one member."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from packfuse.weighting.methods.base import Evidence, Weighting, Weights, equal


class Top1(Weighting):
    """The member with the lowest prompt loss speaks alone; of equals, the first.

    A prompt without tokens chooses nobody: equal weights.
    """

    name: ClassVar[str] = "top1"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, the top-1 baseline"

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Weight one for the lowest prompt loss."""
        if evidence.tokens <= 0:
            return equal(evidence.members)
        first: Weights = np.eye(evidence.members)[evidence.losses.argmin()]
        return first
