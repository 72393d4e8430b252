"""PackLLM-sim: weights from the prompt losses alone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.special import softmax

from packfuse.weightings.base import Evidence, Shrinking, Weights, equal


class Sim(Shrinking):
    """`softmax(-loss / τ)`, which is perplexity to the power -1/τ, normalized.

    Costs nothing beyond reading the prompt. Members that find the prompt impossible get nothing,
    unless all do.
    """

    name: ClassVar[str] = "sim"
    source: ClassVar[str] = "PackLLM-sim, arXiv 2404.11531, section 3"

    tau: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Temperature τ in nats: small trusts the best member alone, large trusts all alike."""

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """Weights by prompt loss, the same for both pools."""
        if np.isinf(evidence.losses).all():
            return equal(evidence.members)
        with np.errstate(over="ignore"):
            scores = -(evidence.losses - evidence.losses.min()) / self.tau
        return self.shrink(softmax(scores), evidence)
