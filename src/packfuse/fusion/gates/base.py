"""The interface of a gate: which positions are fused, and which are left to the reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor


class Gate(BaseModel, ABC):
    """Where the members are fused.

    A gate is one file in this folder: a frozen pydantic model whose fields are its parameters. It
    registers itself by its `name`. Together with drafts by the reference, what it leaves to the
    reference costs the other members next to nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def opens(self, logps: Tensor, weights: Tensor, own: Tensor, together: Tensor) -> Tensor:
        """At which of N positions the members are fused; elsewhere the reference speaks alone.

        Args:
            logps: What the members say, `[K, N, V]`, nats.
            weights: `[N, K]`; a member with weight 0 has no say.
            own: What the reference says, `[N, V]`, nats.
            together: Whether tokens of all members with a say end here, `[N]`.

        Returns:
            `[N]`, booleans.
        """
