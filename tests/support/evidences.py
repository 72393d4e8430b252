"""Generated evidence for the tests of the weightings."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from packfuse.weighting.methods.base import Evidence, Weights


def from_scores(scores: Tensor, labels: Tensor, *, tokens: int | None = None) -> Evidence:
    """Evidence whose losses and pieces follow from `scores` `[K, T, C]` and `labels` `[T]`."""
    at = labels.expand(len(scores), -1).unsqueeze(-1)
    pieces = scores.double().gather(-1, at).squeeze(-1).numpy()
    losses: Weights = -pieces.mean(1) if len(labels) else np.zeros(len(scores))
    return Evidence(losses, len(labels) if tokens is None else tokens, pieces, scores, labels)


def random_evidence(
    seed: int, members: int = 2, positions: int = 20, candidates: int = 12, spread: float = 2.0
) -> Evidence:
    """Members whose logits are the same true logits plus different noise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(positions, candidates, generator=generator) * spread
    noise = torch.randn(members, positions, candidates, generator=generator) * spread
    noise *= torch.rand(members, 1, 1, generator=generator) * 1.5
    labels = torch.multinomial(truth.softmax(-1), 1, generator=generator).squeeze(-1)
    return from_scores((truth + noise).log_softmax(-1).double(), labels)


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    """Random evidence with impossible tokens, almost certain members and equal members."""
    k, t, c = draw(st.integers(1, 4)), draw(st.integers(1, 30)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(k, t, c)) * draw(st.sampled_from([0.0, 1e-3, 1.0, 5.0, 40.0]))
    logits += rng.normal(size=(t, c)) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    logits[rng.random((k, t, c)) < draw(st.sampled_from([0.0, 0.1, 0.5]))] = -np.inf
    # every member has a possible token at every position, though not always the label
    logits[rng.permutation(k)[:, None], np.arange(t), rng.integers(c, size=(k, t))] = 0.0
    scores = torch.from_numpy(logits).log_softmax(-1)
    if draw(st.booleans()):
        scores = scores.float()
    return from_scores(scores, torch.from_numpy(rng.integers(c, size=t)))
