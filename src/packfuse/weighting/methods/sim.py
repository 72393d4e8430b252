"""PackLLM-sim: weights from the prompt losses alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from packfuse.weighting.methods.base import Evidence, Shrinking, Weights, likely


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
        return self.shrink(likely(evidence.losses, self.tau), evidence)
