"""PackLLM-opt: the greedy search for weights of the paper."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from packfuse.weighting.methods.base import Evidence, Fitted, Weights
from packfuse.weighting.methods.losses import PromptLoss, prompt_loss


class Opt(Fitted):
    """Adds members in the order of their prompt loss; a grid search finds the share of each.

    `Opt(shrinkage=0, normalize="own", positions=None, candidates=None, pieces=None)` is exactly the
    method of the paper, which needs the distributions over the whole vocabulary at every position
    of the prompt. For a linear pool the same search uses the probabilities of pieces of text
    instead of logits.

    Example:
        >>> pieces = np.log([[0.9, 0.8, 0.1], [0.1, 0.2, 0.9]])
        >>> evidence = Evidence(-pieces.mean(1), tokens=3, pieces=pieces)
        >>> Opt(shrinkage=0).fit(evidence, "linear").round(2)
        array([0.7, 0.3])
    """

    name: ClassVar[str] = "opt"
    source: ClassVar[str] = "PackLLM-opt, arXiv 2404.11531, section 3"

    step: float = Field(default=0.05, gt=0, le=1)
    """Distance between neighboring shares of the grid, which runs from 0 to 1."""
    early_stop: bool = True
    """End the search when the best share of a new member is 0."""

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights that the greedy search finds, shrunk; see `Weighting.fit`."""
        loss = prompt_loss(evidence, pool)
        if loss is None:
            return self.without_loss(evidence)
        found = greedy(loss, evidence.losses, self.step, early_stop=self.early_stop)
        return self.shrink(found, evidence)


def greedy(
    loss: PromptLoss, losses: Weights, step: float = 0.05, *, early_stop: bool = True
) -> Weights:
    """K - 1 line searches over `λ · current + (1 - λ) · next`.

    A pool is linear in the weights, so that to mix weights is to mix logits (or probabilities).

    Args:
        loss: The loss to minimize.
        losses: Each member's own prompt loss `[K]`; members are added in this order.
        step: Distance between the values of λ that are tried: 0, step, ..., 1. Of equal losses,
            the smallest λ is taken.
        early_stop: Whether the first λ = 1 ends the search.

    Returns:
        Weights `[K]`.
    """
    shares = np.minimum(np.arange(math.ceil(1 / step - 1e-9) + 1) * step, 1.0)
    members = np.eye(len(losses))
    first, *others = losses.argsort(kind="stable")
    current: Weights = members[first]
    for other in others:
        trials = [share * current + (1 - share) * members[other] for share in shares]
        best = int(np.argmin([loss.value(trial) for trial in trials]))
        if early_stop and shares[best] == 1:
            break
        current = trials[best]
    return current
