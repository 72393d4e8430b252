"""The interface of a gate: at which positions the members are fused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from packfuse.text.vocabulary import Vocabulary
from packfuse.transfer import upload


@dataclass(frozen=True, slots=True)
class LastToken:
    """The token before a position.

    Attributes:
        was_open: Whether the pack chose it, at a position where the gate was open.
        token: Its bytes; none for a control token.
        text: The last bytes of the text that it ends, at least one character.
    """

    was_open: bool = False
    token: bytes = b""
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Positions:
    """N positions as a gate sees them.

    Attributes:
        logps: The members' log-probabilities, carried to the reference, `[K, N, V]`, nats.
        weights: `[N, K]`; a member with weight 0 has no effect.
        reference_logps: The reference's own log-probabilities, `[N, V]`, nats.
        ends: Whether a token of each member ends there, N times K, on the host.
        reference: Index of the reference.
        vocabulary: The reference's.
        last: The token before each position.
    """

    logps: Tensor
    weights: Tensor
    reference_logps: Tensor
    ends: Sequence[Sequence[bool]]
    reference: int
    vocabulary: Vocabulary
    last: Sequence[LastToken]

    @property
    def at_boundary(self) -> Tensor:
        """Whether a token of every member with a weight ends there, bool `[N]`."""
        return all_at_boundary(self.ends, self.weights)


def all_at_boundary(ends: Sequence[Sequence[bool]], weights: Tensor) -> Tensor:
    """Where a token of every member with a weight `[N, K]` ends: bool `[N]`."""
    return (upload(ends, weights.device) | (weights == 0)).all(1)


class Roles(NamedTuple):
    """What two members do under a gate that gives them roles.

    Attributes:
        leader: Index of the member that is the reference.
        nudger: Index of the other one.
    """

    leader: int
    nudger: int


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
    looks_back: ClassVar[bool] = False
    """Whether a position depends on what the gate decided one token earlier."""
    literal: ClassVar[bool] = False
    """Whether members are carried literally: each of their tokens to the reference's own spelling
    of it. Otherwise what the reference expects decides between its tokens that fit as well."""

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

    def decide(self, at: Positions, fused: Callable[[], Tensor]) -> tuple[Tensor, list[bool]]:
        """The distributions at N positions: the fused ones where the gate `opens`.

        Args:
            at: The positions.
            fused: Computes the fused log-probabilities `[N, V]`, nats.

        Returns:
            Log-probabilities `[N, V]`, nats, and whether the gate was open at each position.
        """
        is_open = self.opens(at.logps, at.weights, at.reference_logps, at.at_boundary)
        opened: list[bool] = is_open.tolist()
        logps = fused()
        if not all(opened):
            logps = torch.where(is_open[:, None], logps, at.reference_logps)
        return logps, opened

    def roles(self, names: Sequence[str]) -> Roles | None:
        """The members with roles, if the gate gives any: then no others read, and no weights count.

        Args:
            names: The members, in the pack's order.

        Raises:
            ConfigError: for a name that is no member's.
        """
        return None
