"""A power to which fused distributions are raised, for temperatures of the members."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Temperatures of the members and the sharpness of the pool, as one power of what is fused.

    With temperatures T and shares w of the members, a logit pool of sharpness s is

        softmax(s · Σ_k w_k log p_k / T_k)

    Its members have the weights `u_k = (w_k / T_k) / Σ_j (w_j / T_j)`, which sum to one, and their
    geometric mean under u is raised to the power `s · Σ_j w_j / T_j`, which is `s / Σ_k u_k T_k`.
    So a rule is given u, and knows nothing of temperatures: only the power is left to do. It is
    applied to the fused distribution of any rule.

    Attributes:
        temperatures: T, one for each member, in the pack's order.
        sharpness: s.

    Example:
        >>> tempered = Sharpening((1.0, 2.0), sharpness=1.0)
        >>> tempered.power(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([1.0000, 0.5000])
    """

    temperatures: tuple[float, ...]
    sharpness: float

    def power(self, weights: Tensor) -> Tensor:
        """The power `[N]` for weights u, `[N, K]`."""
        return self.sharpness / (weights @ weights.new_tensor(self.temperatures))

    def apply(self, fused: Tensor, weights: Tensor) -> Tensor:
        """Raise distributions to their power.

        Args:
            fused: Log-probabilities `[N, V]`, nats.
            weights: The weights u under which they were fused, `[N, K]`.

        Returns:
            Normalized log-probabilities `[N, V]`; rows that are -inf everywhere stay so.
        """
        raised = fused * self.power(weights).to(fused)[:, None]
        return raised - torch.logsumexp(raised, -1, keepdim=True).nan_to_num(neginf=0)
