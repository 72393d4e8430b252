"""The interface of a gate: at which positions the members are fused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Gate(BaseModel, ABC):
    """The positions at which the members are fused.

    At all other positions the reference's own distribution is used. Together with drafts by the
    reference, such positions cost the other members little time.

    Each gate is one file in this folder: a frozen pydantic model whose fields are its parameters.
    The registry finds it by its `name`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    """The name in settings: `gate="<name>"`."""
    source: ClassVar[str]
    """The paper and section of the method."""

    @abstractmethod
    def opens(
        self, logps: Tensor, weights: Tensor, reference_logps: Tensor, at_boundary: Tensor
    ) -> Tensor:
        """At which of N positions the members are fused.

        Args:
            logps: The members' log-probabilities, carried to the reference, `[K, N, V]`, nats.
            weights: `[N, K]`; a member with weight 0 has no effect.
            reference_logps: The reference's own log-probabilities, `[N, V]`, nats.
            at_boundary: Whether a token of every member with a weight ends here, bool `[N]`.

        Returns:
            Bool `[N]`.
        """
