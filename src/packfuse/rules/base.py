"""The interface of a fusion rule: K distributions in, one out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Rule(BaseModel, ABC):
    """How the members' next-token distributions are combined.

    A rule is one file in this folder: a frozen pydantic model whose fields are its parameters.
    It registers itself by its `name` and so appears in the configuration and on the command line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    """What users write: `fusion="<name>"`."""
    source: ClassVar[str]
    """The paper and section that the rule comes from."""
    pool: ClassVar[str]
    """`"logit"` (geometric) or `"linear"` (arithmetic): which weights are optimal for it."""

    @abstractmethod
    def fuse(self, logps: Tensor, weights: Tensor) -> Tensor:
        """Combine the members at N positions.

        Args:
            logps: Log-probabilities in the reference vocabulary, `[K, N, V]`, nats. They may be
                -inf, and a member's may sum to less than one (it is up to the rule to normalize).
            weights: `[N, K]`, non-negative, rows summing to one. A member with weight 0 has no say,
                whatever its distribution is.

        Returns:
            Normalized fused log-probabilities `[N, V]`: finite or -inf, never NaN.
        """
