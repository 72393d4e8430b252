"""The prompt loss of a pool as a convex function of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from packfuse.errors import WeightsError
from packfuse.weighting.methods.base import Evidence, Weights

FLOOR = -60.0
"""Nats: lower log-probabilities count as this much, because -inf has no gradient."""

_EXCLUDED = 100 * FLOOR
"""Nats: used in place of -inf, because 0 times -inf is not a number."""


class PromptLoss(ABC):
    """Mean of -log p of the true continuation under a pool, in nats per position."""

    @abstractmethod
    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""

    @abstractmethod
    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        """The loss at `weights` and its gradient `[K]`."""


class LogitLoss(PromptLoss):
    """Logit pool: `mean_t [logsumexp_c Σ_k w_k s_kt(c) - Σ_k w_k s_kt(y_t)]`.

    The scores s are log-probabilities, at least `FLOOR`. The score of the label y_t is subtracted
    from those of all candidates, so that only the first term remains. A candidate to which any
    member gives -inf is excluded, as it is in the pool, unless it is the label.

    The scores stay on their device, in float64 where the device supports it.
    """

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        """`scores` are log-probabilities `[K, T, C]` in nats, `labels` indices `[T]` into C."""
        dtype = torch.float32 if scores.device.type == "mps" else torch.float64
        at = labels.to(scores.device).expand(len(scores), -1).unsqueeze(-1)
        excluded = torch.isneginf(scores).any(0, keepdim=True).scatter(-1, at[:1], value=False)
        scores = scores.detach().clamp(min=FLOOR).to(dtype).masked_fill_(excluded, _EXCLUDED)
        self._shape = scores.shape[1:]
        scores -= scores.gather(-1, at)
        self._scores = scores.flatten(1)

    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""
        return float(torch.logsumexp(self._pooled(weights), -1).mean())

    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        """The loss and its gradient: the mean score of each member under the pool."""
        pooled = self._pooled(weights)
        norms = torch.logsumexp(pooled, -1, keepdim=True)
        probs = pooled.sub_(norms).exp_().flatten()
        gradient = (self._scores @ probs) / len(norms)
        return float(norms.mean()), gradient.cpu().double().numpy()

    def _pooled(self, weights: Weights) -> Tensor:
        return (torch.from_numpy(weights).to(self._scores) @ self._scores).view(self._shape)


class LinearLoss(PromptLoss):
    """Linear pool: `mean_m [-log Σ_k w_k p_km]` over pieces of text.

    Each probability is divided by the highest probability that any member gives to the same piece,
    and is at least exp(`FLOOR`). Pieces that are impossible for every member are left out.

    Attributes:
        probs: These probabilities, `[K, M]`.

    Example:
        >>> loss = LinearLoss(np.log([[0.9, 0.2], [0.1, 0.8]]))
        >>> round(loss.value(np.array([0.5, 0.5])), 4)  # -log(0.5)
        0.6931
    """

    def __init__(self, pieces: Weights) -> None:
        """`pieces` are log-probabilities `[K, M]` in nats."""
        best = pieces.max(0)
        possible = np.isfinite(best)
        self.probs: Weights = np.exp((pieces[:, possible] - best[possible]).clip(min=FLOOR))
        self._best = float(best[possible].mean()) if possible.any() else 0.0

    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""
        return float(-np.log(weights @ self.probs).mean()) - self._best

    def value_and_gradient(self, weights: Weights) -> tuple[float, Weights]:
        """The loss at `weights` and its gradient."""
        pooled = weights @ self.probs
        gradient = -(self.probs / pooled).mean(1)
        return float(-np.log(pooled).mean()) - self._best, gradient


def prompt_loss(evidence: Evidence, pool: str) -> LogitLoss | LinearLoss | None:
    """The loss to minimize for a rule of this pool; None if there is nothing to fit.

    Args:
        evidence: The members' scores on the prompt.
        pool: "logit" or "linear".

    Raises:
        WeightsError: for an unknown pool, or a logit pool without scores.
    """
    if pool not in ("logit", "linear"):
        raise WeightsError(
            f"weights cannot be fitted for a {pool!r} pool", hint='known: "logit", "linear"'
        )
    if evidence.tokens <= 0 or evidence.members == 1:
        return None
    if pool == "linear":
        linear = LinearLoss(evidence.pieces)
        return linear if linear.probs.size else None
    if evidence.scores is None or evidence.labels is None:
        raise WeightsError(
            "weights of a logit pool are fitted to scores, and the evidence has none",
            hint='use weighting "sim", or pass Evidence(scores=, labels=)',
        )
    return LogitLoss(evidence.scores, evidence.labels) if evidence.labels.numel() else None
