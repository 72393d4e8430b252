"""PackLLM-opt: the paper's greedy search for weights."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from packfuse.weighting.methods.base import Evidence, Fitted, Weights, equal
from packfuse.weighting.methods.losses import PromptLoss, prompt_loss


class Opt(Fitted):
    """Members join by rising prompt loss, each by one search over a grid of shares.

    The paper's own is `Opt(shrinkage=0, normalize="own", positions=None, candidates=None,
    pieces=None)`, which keeps the whole prompt's distributions over the whole vocabulary. For a
    linear pool the same search runs on probabilities of pieces of text, in place of logits.
    """

    name: ClassVar[str] = "opt"
    source: ClassVar[str] = "PackLLM-opt, arXiv 2404.11531, section 3"

    step: float = Field(default=0.05, gt=0, le=1)
    """Distance between neighboring shares of the grid, which runs from 0 to 1."""
    early_stop: bool = True
    """Leave out the remaining members once one has been given nothing."""

    def fit(self, evidence: Evidence, pool: str) -> Weights:
        """The weights that the greedy search ends with."""
        loss = prompt_loss(evidence, pool)
        if loss is None:
            return equal(evidence.members)
        found = greedy(loss, evidence.losses, self.step, early_stop=self.early_stop)
        return self.shrink(found, evidence)


def greedy(
    loss: PromptLoss, losses: Weights, step: float = 0.05, *, early_stop: bool = True
) -> Weights:
    """K - 1 line searches over `λ · current + (1 - λ) · next`.

    Pools are linear in the weights, so mixing weights is mixing logits (or probabilities).

    Args:
        loss: What to make small.
        losses: `[K]` each member's own prompt loss, which sets the order.
        step: Distance between trial values of λ = 0, step, … 1; of equals, the smallest wins.
        early_stop: Whether the first λ = 1 ends the search.
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
