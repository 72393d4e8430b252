"""The weights that are best on the prompt: a convex problem, solved."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.optimize import LinearConstraint, minimize

from packfuse.weighting.methods.base import Evidence, Fitted, Weights, equal
from packfuse.weighting.methods.losses import LinearLoss, PromptLoss, prompt_loss
from packfuse.weighting.methods.opt import greedy

GAP = 1e-7
"""Nats per position: an optimum proven to be this close needs no further search."""
SMALL = 1e-3
"""Shares below this are tried as 0: a solver stops short of the edge, and who gets 0 can rest."""

ROUNDING = 1e-13
"""Nats per position: two losses that differ by less are equal."""


class Exact(Fitted):
    """The optimum that PackLLM-opt approximates, for either pool.

    The prompt loss of a logit pool is a log-sum-exp of linear functions of the weights, that of a
    linear pool the negative log of one: both convex on the simplex, so that a gradient method finds
    the best weights, and the gradient bounds what is left to gain (Frank and Wolfe, 1956). Where
    that bound stays above `GAP`, the corners, equal weights and the greedy search are tried as
    well. So the loss is never above theirs, but for `GAP` where members hardly differ.

    Shrinkage narrows the simplex before the search, so that this holds for shrunk weights too.
    """

    name: ClassVar[str] = "exact"
    source: ClassVar[str] = "the optimum of PackLLM's objective, arXiv 2404.11531, section 3"

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights with the lowest prompt loss."""
        loss = prompt_loss(evidence, pool)
        if loss is None:
            return equal(evidence.members)
        simplex = _Simplex(loss, self.shrink(np.eye(evidence.members), evidence))
        start = equal(evidence.members)
        if isinstance(loss, LinearLoss):
            start = em(simplex.corners @ loss.odds, start)
        found = simplex.descend(start)
        if simplex.gap(found) > GAP:
            searches = [greedy(loss, evidence.losses, early_stop=stop) for stop in (True, False)]
            rivals = [*searches, start, equal(evidence.members), *np.eye(evidence.members)]
            found = min([found, *rivals], key=simplex.value)
        return found @ simplex.corners


class _Simplex:
    """A loss over the weights between K corners; points are shares of the corners."""

    def __init__(self, loss: PromptLoss, corners: Weights) -> None:
        """`corners` `[K, K]`: one row of weights each."""
        self.loss, self.corners = loss, corners

    def value(self, point: Weights) -> float:
        return self.loss.value(point @ self.corners)

    def slope(self, point: Weights) -> tuple[float, Weights]:
        value, gradient = self.loss.slope(point @ self.corners)
        return value, self.corners @ gradient

    def gap(self, point: Weights) -> float:
        """An upper bound on what any other point could gain."""
        _, gradient = self.slope(point)
        return float(gradient @ point - gradient.min())

    def descend(self, start: Weights) -> Weights:
        """The lowest point, by sequential quadratic programming."""
        found = minimize(
            self.slope,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * len(start),
            constraints=LinearConstraint(np.ones((1, len(start))), 1, 1),
            options={"ftol": 1e-14, "maxiter": 100},
        ).x.clip(min=0.0)
        return self.pruned(found / found.sum())

    def pruned(self, point: Weights) -> Weights:
        """The point without those small shares that do not lower the loss."""
        for at in np.flatnonzero((point > 0) & (point < SMALL)):
            without = np.where(np.arange(len(point)) == at, 0.0, point)
            without /= without.sum()
            if self.value(without) <= self.value(point) + ROUNDING:
                point = without
        return point


def em(odds: Weights, start: Weights, *, steps: int = 300, settled: float = 1e-9) -> Weights:
    """Expectation-maximization for the weights of a linear pool.

    Every step lowers the loss, and a weight of 0 stays 0.

    Args:
        odds: `[K, M]` probabilities, each column up to a constant.
        start: `[K]` weights to start from.
        steps: How many steps at most.
        settled: Stop once no weight moves by more.
    """
    weights = start
    for _ in range(steps):
        moved: Weights = weights * (odds / (weights @ odds)).mean(1)
        if np.abs(moved - weights).max() <= settled:
            return moved
        weights = moved
    return weights
