"""Compressed scores: against a loop, against their bound, and the weights fitted to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from packfuse.weighting.fit_positions import MIN_TAIL, compress_topk, join_positions
from packfuse.weighting.methods.exact import Exact
from packfuse.weighting.methods.losses import LogitLoss
from tests.support.evidences import from_scores


def peaked(members: int, positions: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Distributions like those of language models: Zipf's law, sharper at some positions.

    The members differ by noise from one distribution, from which the labels are drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(size, generator=generator) for _ in range(positions)])
    sharpness = 0.8 + 1.7 * torch.rand(positions, 1, generator=generator)
    truth = -sharpness * (ranks + 1.0).log()
    noise = torch.randn(members, positions, size, generator=generator)
    labels = torch.multinomial(truth.softmax(-1), 1, generator=generator).squeeze(-1)
    return (truth + noise).log_softmax(-1), labels


def loop(logps: Tensor, label: int, top: int) -> set[int]:
    """The tokens to keep at one position; `logps` `[K, V]`."""
    kept = {label}
    for member in logps.tolist():
        kept |= set(sorted(range(len(member)), key=lambda c: -member[c])[:top])
    return kept


@given(
    seed=st.integers(0, 10_000),
    members=st.integers(1, 4),
    positions=st.integers(1, 5),
    top=st.integers(1, 12),
)
def test_each_position_keeps_every_members_best_and_the_label(
    seed: int, members: int, positions: int, top: int
):
    logps, labels = peaked(members, positions, 13, seed)
    scores, at = compress_topk(logps, labels, top)
    assert scores.shape[:2] == logps.shape[:2]
    for t, label in enumerate(labels.tolist()):
        kept = sorted(loop(logps[:, t], label, top))
        columns = scores[:, t, :-1].T.tolist()
        assert columns[: len(kept)] == [logps[:, t, c].tolist() for c in kept]
        assert all(math.isinf(s) and s < 0 for column in columns[len(kept) :] for s in column)
        assert kept[int(at[t])] == label
        rest = 1 - logps[:, t, kept].exp().sum(-1)
        found = scores[:, t, -1].exp()
        torch.testing.assert_close(found, rest.clamp(min=MIN_TAIL), atol=1e-6, rtol=1e-4)
    widths = [len(loop(logps[:, t], int(labels[t]), top)) for t in range(positions)]
    assert scores.shape[-1] == max(widths) + 1


@pytest.mark.parametrize("top", [None, 40, 100])
def test_the_whole_vocabulary_is_kept_as_it_is(top: int | None):
    logps, labels = peaked(2, 4, 40)
    scores, at = compress_topk(logps, labels, top)
    assert scores is logps
    assert at is labels


def test_no_positions():
    logps, labels = peaked(2, 4, 40)
    scores, at = compress_topk(logps[:, :0], labels[:0], 8)
    assert scores.shape[:2] == (2, 0)
    assert at.shape == (0,)
    assert join_positions([(scores, at), compress_topk(logps, labels, 8)])[0].shape[1] == 4


def test_impossible_labels_stay_impossible():
    logps, labels = peaked(2, 1, 40)
    logps[0, 0, labels[0]] = -torch.inf
    scores, at = compress_topk(logps, labels, 3)
    assert scores[0, 0, at[0]] == -torch.inf
    assert scores[1, 0, at[0]] == logps[1, 0, labels[0]]


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), top=st.integers(1, 60))
def test_the_bound_holds_at_every_weighting(seed: int, share: float, top: int):
    logps, labels = peaked(2, 3, 100, seed)
    weights = torch.tensor([share, 1 - share], dtype=torch.float64)
    whole = LogitLoss(logps, labels).value(weights.numpy())
    scores, at = compress_topk(logps, labels, top)
    compressed = LogitLoss(scores, at).value(weights.numpy())
    pooled = torch.tensordot(weights, scores.double().clamp(min=-1e3), 1)
    most = torch.log1p((pooled[:, -1] - pooled[:, :-1].logsumexp(-1)).exp()).mean()
    assert whole - 1e-5 <= compressed <= whole + float(most) + 1e-5
    if share in (0, 1):
        assert compressed == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_256_candidates_of_20000_give_nearly_the_same_loss_and_weights(seed: int):
    logps, labels = peaked(2, 64, 20_000, seed)
    scores, at = compress_topk(logps, labels, 256)
    assert scores.shape[-1] <= 2 * 256 + 2
    whole, compressed = LogitLoss(logps, labels), LogitLoss(scores, at)
    for share in (0.0, 0.3, 0.5, 1.0):
        weights = np.array([share, 1 - share])
        assert compressed.value(weights) == pytest.approx(whole.value(weights), abs=0.05)
    found = Exact(shrinkage=0).fit(from_scores(scores, at), "logit")
    best = Exact(shrinkage=0).fit(from_scores(logps, labels), "logit")
    np.testing.assert_allclose(found, best, atol=0.02)
    # What the weights are fitted for is the loss over the whole vocabulary.
    assert whole.value(found) - whole.value(best) < 1e-3


def test_joined_chunks_equal_the_whole():
    logps, labels = peaked(3, 20, 200)
    whole = LogitLoss(*compress_topk(logps, labels, 10))
    chunks = zip(logps.split([7, 1, 12], 1), labels.split([7, 1, 12]), strict=True)
    scores, at = join_positions([compress_topk(part, label, 10) for part, label in chunks])
    expected = logps.gather(-1, labels.expand(3, -1).unsqueeze(-1))
    assert torch.equal(scores.gather(-1, at.expand(3, -1).unsqueeze(-1)), expected)
    for weights in ([1.0, 0.0, 0.0], [0.2, 0.3, 0.5]):
        assert LogitLoss(scores, at).value(np.array(weights)) == pytest.approx(
            whole.value(np.array(weights)), abs=1e-9
        )
