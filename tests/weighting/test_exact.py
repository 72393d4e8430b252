"""The exact weights: at the optimum, never worse than other weights, with correct gradients."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize
from scipy.special import softmax

from packfuse.weighting.methods import exact
from packfuse.weighting.methods.base import Evidence, Weights, equal
from packfuse.weighting.methods.exact import Exact, em
from packfuse.weighting.methods.losses import FLOOR, LinearLoss, LogitLoss, PromptLoss, prompt_loss
from packfuse.weighting.methods.opt import Opt
from tests.support import oracles
from tests.support.evidences import evidences, from_scores, random_evidence

ROUNDING = 1e-10
POOLS = ["logit", "linear"]

every_pool = pytest.mark.parametrize("pool", POOLS)


def loss_of(evidence: Evidence, pool: str) -> PromptLoss:
    loss = prompt_loss(evidence, pool)
    assert loss is not None
    return loss


def simplex_grid(members: int, parts: int) -> list[Weights]:
    """All weights in steps of 1 / parts."""
    steps = itertools.product(range(parts + 1), repeat=members - 1)
    return [np.array([*s, parts - sum(s)]) / parts for s in steps if sum(s) <= parts]


@every_pool
@settings(max_examples=300)
@given(
    evidence=evidences(),
    shrinkage=st.sampled_from([0.0, 8.0]),
    prior=st.sampled_from(["equal", "sim"]),
    early_stop=st.booleans(),
)
def test_exact_is_never_worse_than_opt_corners_or_equal_weights(
    pool: str,
    evidence: Evidence,
    shrinkage: float,
    prior: Literal["equal", "sim"],
    early_stop: bool,
):
    loss = prompt_loss(evidence, pool)
    if loss is None:
        assert evidence.members == 1 or np.isinf(evidence.pieces).any()
        return
    best = Exact(shrinkage=shrinkage, prior=prior)
    found = loss.value(best.fit(evidence, pool))
    opt = Opt(shrinkage=shrinkage, prior=prior, early_stop=early_stop).fit(evidence, pool)
    points = [equal(evidence.members), *np.eye(evidence.members)]
    for other in [opt, *(best.shrink(point, evidence) for point in points)]:
        assert found <= loss.value(other) + exact.GAP


@every_pool
@pytest.mark.parametrize("shrinkage", [0.0, 8.0])
@pytest.mark.parametrize("members", [2, 3, 4])
def test_on_members_that_differ_exact_is_below_opt_to_the_last_digits(
    pool: str, members: int, shrinkage: float
):
    for seed in range(10):
        evidence = random_evidence(seed, members, positions=60, candidates=30)
        loss = loss_of(evidence, pool)
        found = loss.value(Exact(shrinkage=shrinkage).fit(evidence, pool))
        opt = Opt(shrinkage=shrinkage).fit(evidence, pool)
        assert found <= loss.value(opt) + 1e-12


@every_pool
@pytest.mark.parametrize(("members", "parts"), [(2, 100), (3, 40)])
@pytest.mark.parametrize("shrinkage", [0.0, 8.0])
@pytest.mark.parametrize("seed", range(3))
def test_exact_beats_every_point_of_a_fine_grid(
    pool: str,
    members: int,
    parts: int,
    shrinkage: float,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(exact, "GAP", np.inf)  # the solver alone, without the other searches
    evidence = random_evidence(seed, members, positions=15, candidates=6)
    loss = loss_of(evidence, pool)
    best = Exact(shrinkage=shrinkage)
    weights = best.fit(evidence, pool)
    grid = [best.shrink(point, evidence) for point in simplex_grid(members, parts)]
    losses = [loss.value(point) for point in grid]
    assert loss.value(weights) <= min(losses) + ROUNDING
    # the loss is convex, so the best point of the grid is near
    assert np.abs(grid[int(np.argmin(losses))] - weights).max() < 3 / parts


@every_pool
@pytest.mark.parametrize("seed", range(3))
def test_the_fallback_alone_is_never_worse(pool: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    """If the solver does not move, corners, equal weights and the greedy search remain."""
    monkeypatch.setattr(exact._Simplex, "descend", lambda self, start: start)
    evidence = random_evidence(seed, members=3)
    loss = loss_of(evidence, pool)
    found = loss.value(Exact(shrinkage=0).fit(evidence, pool))
    opt = Opt(shrinkage=0).fit(evidence, pool)
    for other in [opt, equal(3), *np.eye(3)]:
        assert found <= loss.value(other) + ROUNDING


@every_pool
def test_a_useless_member_gets_weight_zero(pool: str):
    unsure = random_evidence(1)
    assert unsure.scores is not None
    assert unsure.labels is not None
    # unsure members: in a logit pool, even a wrong member can help against two that are too sure
    evidence = from_scores((0.3 * unsure.scores).log_softmax(-1), unsure.labels)
    assert evidence.scores is not None
    assert evidence.labels is not None
    # the third is always sure of another candidate
    wrong = torch.full_like(evidence.scores[:1], -20.0)
    wrong.scatter_(-1, ((evidence.labels + 1) % wrong.shape[-1]).view(1, -1, 1), -1e-8)
    worse = from_scores(torch.cat([evidence.scores, wrong]), evidence.labels)
    weights = Exact(shrinkage=0).fit(worse, pool)
    assert weights[2] == 0
    np.testing.assert_allclose(weights[:2], Exact(shrinkage=0).fit(evidence, pool), atol=1e-4)


@every_pool
def test_weights_are_zero_or_above_rounding(pool: str):
    """A solver ends a rounding error away from 0; the weights are exactly 0."""
    for seed in [*range(10), 1289, 1340, 1360, 1416]:
        weights = Exact(shrinkage=0).fit(random_evidence(seed, members=4), pool)
        assert all(weight == 0 or weight > 1e-9 for weight in weights)


@every_pool
def test_equal_members_stay_equal(pool: str):
    one = random_evidence(2, members=1)
    assert one.scores is not None
    assert one.labels is not None
    copies = from_scores(one.scores.expand(3, -1, -1), one.labels)
    np.testing.assert_allclose(Exact().fit(copies, pool), equal(3), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_losses_are_those_of_the_twins(seed: int):
    evidence = random_evidence(seed, members=3)
    assert evidence.scores is not None
    assert evidence.labels is not None
    weights = np.array([0.2, 0.5, 0.3])
    pooled = np.tensordot(weights, evidence.scores.numpy(), 1)
    logit = loss_of(evidence, "logit").value(weights)
    assert logit == pytest.approx(oracles.nll(pooled.tolist(), evidence.labels.tolist()))
    linear = loss_of(evidence, "linear").value(weights)
    assert linear == pytest.approx(oracles.linear_nll(evidence.pieces.tolist(), weights.tolist()))


@every_pool
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_numeric_derivatives(pool: str, seed: int):
    loss = loss_of(random_evidence(seed, members=3), pool)
    weights = np.random.default_rng(seed).dirichlet([2, 2, 2])
    value, gradient = loss.value_and_gradient(weights)
    assert value == pytest.approx(loss.value(weights), abs=1e-12)
    np.testing.assert_allclose(gradient, approx_fprime(weights, loss.value), atol=1e-5)


def test_impossible_scores_count_as_the_floor():
    scores = torch.tensor([[[0.0, -torch.inf]], [[-0.7, -0.7]]])
    labels = torch.tensor([1])
    floored = scores.clamp(min=FLOOR)
    for weights in (np.array([1.0, 0.0]), np.array([0.3, 0.7])):
        found = LogitLoss(scores, labels).value(weights)
        assert found == pytest.approx(LogitLoss(floored, labels).value(weights))
        assert np.isfinite(found)


def test_candidates_impossible_for_all_members_have_no_effect():
    evidence = random_evidence(0)
    assert evidence.scores is not None
    assert evidence.labels is not None
    padded = torch.nn.functional.pad(evidence.scores, (0, 50), value=-torch.inf)
    weights = np.array([0.4, 0.6])
    expected = LogitLoss(evidence.scores, evidence.labels).value_and_gradient(weights)
    found = LogitLoss(padded, evidence.labels).value_and_gradient(weights)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


def test_candidates_impossible_for_one_member_have_no_effect():
    evidence = random_evidence(0)
    assert evidence.scores is not None
    assert evidence.labels is not None
    more = torch.nn.functional.pad(evidence.scores, (0, 50), value=-1.0)
    more[1, :, -50:] = -torch.inf
    weights = np.array([0.4, 0.6])
    expected = LogitLoss(evidence.scores, evidence.labels).value_and_gradient(weights)
    found = LogitLoss(more, evidence.labels).value_and_gradient(weights)
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_any_precision_are_fitted(dtype: torch.dtype):
    evidence = random_evidence(4)
    assert evidence.scores is not None
    assert evidence.labels is not None
    rough = from_scores(evidence.scores.to(dtype), evidence.labels)
    expected = Exact().fit(evidence, "logit")
    np.testing.assert_allclose(Exact().fit(rough, "logit"), expected, atol=0.02)


@given(seed=st.integers(0, 10_000), members=st.integers(2, 4), pieces=st.integers(1, 40))
def test_em_finds_the_optimum_that_scipy_finds(seed: int, members: int, pieces: int):
    rng = np.random.default_rng(seed)
    loss = LinearLoss(-rng.exponential(3, size=(members, pieces)))
    found = em(loss.probs, equal(members), steps=20_000, tolerance=1e-12)

    # independently: parameters through a softmax, numeric gradient
    def loss_of_logits(logits: Weights) -> float:
        return loss.value(softmax(logits))

    other = minimize(loss_of_logits, np.zeros(members), tol=1e-10)
    assert loss.value(found) <= other.fun + 1e-7
    assert found.sum() == pytest.approx(1)


@given(seed=st.integers(0, 10_000), members=st.integers(2, 4))
def test_every_step_of_em_lowers_the_loss_and_zeros_stay(seed: int, members: int):
    rng = np.random.default_rng(seed)
    loss = LinearLoss(-rng.exponential(5, size=(members, 9)))
    start = np.append(rng.dirichlet(np.ones(members - 1)), 0.0)
    weights = start
    for _ in range(5):
        moved = em(loss.probs, weights, steps=1)
        assert loss.value(moved) <= loss.value(weights) + 1e-12
        assert moved[-1] == 0
        weights = moved
    np.testing.assert_allclose(em(loss.probs, start, steps=5), weights)


def test_long_pieces_do_not_underflow():
    pieces = np.array([[-1000.0, -2000.0], [-1001.0, -1990.0]])
    found = Exact(shrinkage=0).fit(Evidence(-pieces.mean(1), 50, pieces), "linear")
    shifted = pieces - pieces.max(0)
    again = Exact(shrinkage=0).fit(Evidence(-shifted.mean(1), 50, shifted), "linear")
    np.testing.assert_allclose(found, again)
    # each member is better on one piece, the second by far
    assert 0 < found[0] < 0.5
