"""The loss of a pool on the prompt, as a convex function of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from packfuse.errors import WeightsError
from packfuse.weighting.methods.base import Evidence, Weights

FLOOR = -60.0
"""Nats below which a log-probability counts as this much: -inf has no slope to follow."""

_NOTHING = 100 * FLOOR
"""As good as -inf, but 0 times it is 0."""


class PromptLoss(ABC):
    """Mean -log p of what came next, nats per position, under the pool with given weights."""

    @abstractmethod
    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""

    @abstractmethod
    def slope(self, weights: Weights) -> tuple[float, Weights]:
        """The loss at `weights` and its gradient `[K]`."""


class LogitLoss(PromptLoss):
    """Logit pool: `mean_t [logsumexp_c Σ_k w_k s_kt(c) - Σ_k w_k s_kt(y_t)]`.

    Scores are taken relative to the label's, which leaves only the first term, and cut off at
    `FLOOR`. What some member forbids (-inf) is out for all, as in a pool of them; only a label
    stays. They stay on their device, in float64 where the device has it.
    """

    def __init__(self, scores: Tensor, labels: Tensor) -> None:
        """`scores` `[K, T, C]` log-probabilities, `labels` `[T]`."""
        exact = torch.float32 if scores.device.type == "mps" else torch.float64
        at = labels.to(scores.device).expand(len(scores), -1).unsqueeze(-1)
        forbidden = torch.isneginf(scores).any(0, keepdim=True).scatter(-1, at[:1], value=False)
        scores = scores.detach().clamp(min=FLOOR).to(exact).masked_fill_(forbidden, _NOTHING)
        self._shape = scores.shape[1:]
        scores -= scores.gather(-1, at)
        self._scores = scores.flatten(1)

    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""
        return float(torch.logsumexp(self._pooled(weights), -1).mean())

    def slope(self, weights: Weights) -> tuple[float, Weights]:
        """The loss at `weights` and its gradient: the pool's expected score of each member."""
        pooled = self._pooled(weights)
        norms = torch.logsumexp(pooled, -1, keepdim=True)
        chances = pooled.sub_(norms).exp_().flatten()
        gradient = (self._scores @ chances) / len(norms)
        return float(norms.mean()), gradient.cpu().double().numpy()

    def _pooled(self, weights: Weights) -> Tensor:
        return (torch.from_numpy(weights).to(self._scores) @ self._scores).view(self._shape)


class LinearLoss(PromptLoss):
    """Linear pool: `mean_m [-log Σ_k w_k p_km]` over pieces of text, no vocabulary needed.

    Probabilities are taken relative to the most confident member's, and cut off at `FLOOR` nats
    below it. Pieces that every member finds impossible say nothing and are left out.
    """

    def __init__(self, pieces: Weights) -> None:
        """`pieces` `[K, M]` log-probabilities in nats."""
        best = pieces.max(0)
        said = np.isfinite(best)
        self.odds: Weights = np.exp((pieces[:, said] - best[said]).clip(min=FLOOR))
        self._best = float(best[said].mean()) if said.any() else 0.0

    def value(self, weights: Weights) -> float:
        """The loss at `weights` `[K]`."""
        return float(-np.log(weights @ self.odds).mean()) - self._best

    def slope(self, weights: Weights) -> tuple[float, Weights]:
        """The loss at `weights` and its gradient."""
        pooled = weights @ self.odds
        gradient = -(self.odds / pooled).mean(1)
        return float(-np.log(pooled).mean()) - self._best, gradient


def prompt_loss(evidence: Evidence, pool: str) -> LogitLoss | LinearLoss | None:
    """The loss that weights for `pool` should make small; None where there is nothing to fit.

    Raises:
        WeightsError: for an unknown pool, or a logit pool without scores.
    """
    if pool not in ("logit", "linear"):
        raise WeightsError(f"no fit is known for a {pool!r} pool", hint='known: "logit", "linear"')
    if evidence.tokens <= 0 or evidence.members == 1:
        return None
    if pool == "linear":
        linear = LinearLoss(evidence.pieces)
        return linear if linear.odds.size else None
    if evidence.scores is None or evidence.labels is None:
        raise WeightsError(
            "a logit pool is fitted to scores, and there are none",
            hint='use weighting "sim", or pass Evidence(scores=, labels=)',
        )
    return LogitLoss(evidence.scores, evidence.labels) if evidence.labels.numel() else None
