"""All the weight for the member with the lowest prompt loss."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from packfuse.weighting.methods.base import Evidence, Weighting, Weights, equal


class Top1(Weighting):
    """Weight 1 for the member with the lowest prompt loss; of equal losses, the first.

    For a prompt without tokens the weights are equal.

    Example:
        >>> Top1().fit(Evidence(np.array([3.0, 2.0]), 9, np.zeros((2, 0))), "logit")
        array([0., 1.])
    """

    name: ClassVar[str] = "top1"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, the top-1 baseline"

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights, the same for both pools; see `Weighting.fit`."""
        if evidence.tokens <= 0:
            return equal(evidence.members)
        first: Weights = np.eye(evidence.members)[evidence.losses.argmin()]
        return first
