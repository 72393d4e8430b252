"""The weights with the lowest prompt loss, by convex optimization."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.optimize import LinearConstraint, minimize

from packfuse.weighting.methods.base import Evidence, Fitted, Weights, equal
from packfuse.weighting.methods.losses import LinearLoss, PromptLoss, prompt_loss
from packfuse.weighting.methods.opt import greedy

GAP = 1e-7
"""Nats per position: the search ends if the loss is at most this much above the optimum."""

SMALL = 1e-3
"""Shares below this are set to 0 if the loss does not rise: a solver never reaches 0 exactly, and a
member with weight 0 need not be run."""

ROUNDING = 1e-13
"""Nats per position: two losses that differ by less count as equal."""


class Exact(Fitted):
    """The optimum that PackLLM-opt approximates, for both pools.

    The prompt loss of a logit pool is a log-sum-exp of linear functions of the weights; that of a
    linear pool is the negative log of a linear function. Both are convex on the simplex, so a
    gradient method finds the optimum, and the gradient bounds the distance to it (the duality gap
    of Frank and Wolfe, 1956). If that bound is above `GAP`, the corners of the simplex, equal
    weights and the result of the greedy search are tried, too. So the loss is never higher than
    theirs by more than `GAP`.

    Shrinkage maps the simplex to a smaller one before the search, so that the same holds for the
    shrunk weights.

    Example:
        >>> pieces = np.log([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]])
        >>> evidence = Evidence(-pieces.mean(1), tokens=3, pieces=pieces)
        >>> Exact(shrinkage=0).fit(evidence, "linear").round(2)
        array([0.68, 0.32])
    """

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = "the optimum of PackLLM's objective, arXiv 2404.11531, section 3"

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights with the lowest prompt loss."""
        loss = prompt_loss(evidence, pool)
        if loss is None:
            return self.without_loss(evidence)
        simplex = _Simplex(loss, self.shrink(np.eye(evidence.members), evidence))
        start = equal(evidence.members)
        if isinstance(loss, LinearLoss):
            start = em(simplex.corners @ loss.probs, start)
        found = simplex.descend(start)
        if simplex.gap(found) > GAP:
            searches = [greedy(loss, evidence.losses, early_stop=stop) for stop in (True, False)]
            others = [*searches, start, equal(evidence.members), *np.eye(evidence.members)]
            found = min([found, *others], key=simplex.value)
        return found @ simplex.corners


class _Simplex:
    """A loss on the simplex between K corners; a point is given by its shares of the corners."""

    def __init__(self, loss: PromptLoss, corners: Weights) -> None:
        """`corners` has one row of weights for each corner, `[K, K]`."""
        self.loss, self.corners = loss, corners

    def value(self, point: Weights) -> float:
        return self.loss.value(point @ self.corners)

    def value_and_gradient(self, point: Weights) -> tuple[float, Weights]:
        value, gradient = self.loss.value_and_gradient(point @ self.corners)
        return value, self.corners @ gradient

    def gap(self, point: Weights) -> float:
        """An upper bound on the distance of the loss at `point` to the lowest loss, in nats."""
        _, gradient = self.value_and_gradient(point)
        return float(gradient @ point - gradient.min())

    def descend(self, start: Weights) -> Weights:
        """The point with the lowest loss, by sequential quadratic programming (SLSQP)."""
        found = minimize(
            self.value_and_gradient,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(start),
            constraints=LinearConstraint(np.ones((1, len(start))), 1, 1),
            options={"ftol": 1e-14, "maxiter": 100},
        ).x.clip(min=0.0)
        return self._without_small_shares(found / found.sum())

    def _without_small_shares(self, point: Weights) -> Weights:
        """The point with each share below `SMALL` set to 0, if that does not raise the loss."""
        for at in np.flatnonzero((point > 0) & (point < SMALL)):
            without = np.where(np.arange(len(point)) == at, 0.0, point)
            without /= without.sum()
            if self.value(without) <= self.value(point) + ROUNDING:
                point = without
        return point


def em(probs: Weights, start: Weights, *, steps: int = 300, tolerance: float = 1e-9) -> Weights:
    """Expectation-maximization for the weights of a linear pool.

    No step raises the loss, and a weight of 0 stays 0.

    Args:
        probs: Probabilities `[K, M]`, each column up to a constant factor.
        start: Weights `[K]` to start from.
        steps: Maximum number of steps.
        tolerance: The search ends when no weight changes by more.

    Example:
        >>> em(np.array([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]]), np.array([0.5, 0.5])).round(2)
        array([0.68, 0.32])
    """
    weights = start
    for _ in range(steps):
        moved: Weights = weights * (probs / (weights @ probs)).mean(1)
        if np.abs(moved - weights).max() <= tolerance:
            return moved
        weights = moved
    return weights
