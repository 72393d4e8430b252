"""The settings of one call. They are handed to whatever needs them, and never stored elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from packfuse.causal_lm.drafts.base import Draft
from packfuse.fusion.pooling import FusionSettings
from packfuse.weighting.methods.base import Weighting


@dataclass(frozen=True, kw_only=True)
class CallSettings(FusionSettings):
    """How one call of `generate` or `forward` is fused, weighted and drafted.

    Attributes:
        weighting: How the members are weighted on a prompt.
        draft: How tokens are drafted (speculative decoding); None for token by token.
        forward_weights: `[K]`, the weights of a bare `forward`, which fits none; None for equal
            weights.
    """

    weighting: Weighting
    draft: Draft | None = None
    forward_weights: Tensor | None = None
