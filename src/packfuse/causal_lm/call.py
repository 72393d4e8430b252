"""The settings of one call, which are passed to the functions that need them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft
from packfuse.fusion.pooling import FusionSettings
from packfuse.fusion.rules.sharpening import Sharpening
from packfuse.weighting.methods.base import Weighting


@dataclass(frozen=True, kw_only=True)
class CallSettings(FusionSettings):
    """How the members are fused and weighted in one call of `generate` or `forward`.

    Attributes:
        weighting: How the members are weighted on a prompt.
        draft: How tokens are drafted (speculative decoding); None to decode token by token.
        forward_weights: Weights `[K]` of a `forward` without a prepared prompt, which fits no
            weights; None for equal weights.
    """

    weighting: Weighting
    draft: Draft | None = None
    forward_weights: Tensor | None = None

    @property
    def sharpening(self) -> Sharpening | None:
        """That of the weighting."""
        return self.weighting.sharpening
