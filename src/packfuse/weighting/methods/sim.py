"""PackLLM-sim: weights from the prompt losses."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from packfuse.weighting.methods.base import Evidence, Shrinking, Weights, loss_softmax


class Sim(Shrinking):
    """`softmax(-loss / τ)`, which is perplexity to the power -1/τ, normalized.

    A member with infinite loss gets 0, unless all have infinite loss.

    Example:
        >>> import numpy as np
        >>> Sim().fit(Evidence(np.array([1.0, 2.0]), 9, np.zeros((2, 0))), "logit").round(2)
        array([0.73, 0.27])
    """

    name: ClassVar[str] = "sim"
    source: ClassVar[str] = "PackLLM-sim, arXiv 2404.11531, section 3"

    tau: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Temperature τ in nats. With a small τ the member with the lowest loss gets nearly all the
    weight, with a large τ the weights are nearly equal."""

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights, the same for both pools; see `Weighting.fit`."""
        return self.shrink(loss_softmax(evidence.losses, self.tau), evidence)
