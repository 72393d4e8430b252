"""Weightings against their formulas, and the greedy search against a twin of the paper's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse.errors import ConfigError, WeightsError
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Evidence, Fitted, Weighting
from packfuse.weighting.methods.exact import Exact
from packfuse.weighting.methods.fixed import Fixed
from packfuse.weighting.methods.opt import Opt
from packfuse.weighting.methods.sim import Sim
from packfuse.weighting.methods.top1 import Top1
from packfuse.weighting.methods.uniform import Uniform
from tests.support import oracles
from tests.support.evidences import evidences, from_scores, random_evidence

PROMPTED: list[Weighting] = [Uniform(), Top1(), Sim(), Opt(), Exact()]
POOLS = ["logit", "linear"]

every_pool = pytest.mark.parametrize("pool", POOLS)
every_weighting = pytest.mark.parametrize("weighting", PROMPTED, ids=lambda w: w.name)


@every_pool
@given(weighting=st.sampled_from(PROMPTED), evidence=evidences())
def test_weights_are_weights(weighting: Weighting, pool: str, evidence: Evidence):
    assert evidence.scores is not None
    before = evidence.scores.clone()
    weights = weighting.fit(evidence, pool)
    assert weights.shape == (evidence.members,)
    assert weights.dtype == np.float64
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert torch.equal(evidence.scores, before)


@every_pool
@every_weighting
def test_one_member_has_all_the_weight(weighting: Weighting, pool: str):
    assert weighting.fit(random_evidence(0, members=1), pool).tolist() == [1.0]


@every_pool
@every_weighting
def test_a_prompt_without_tokens_gives_equal_weights(weighting: Weighting, pool: str):
    empty = Evidence(np.zeros(4), 0, np.zeros((4, 0)))
    assert weighting.fit(empty, pool).tolist() == [0.25] * 4


@pytest.mark.parametrize("weighting", [Opt(shrinkage=0), Exact(shrinkage=0)], ids=repr)
def test_a_prompt_without_positions_to_fit_gives_equal_weights(weighting: Weighting):
    """Text without shared boundaries: tokens were scored, but there is nothing to compare."""
    apart = from_scores(torch.zeros(2, 0, 5), torch.zeros(0, dtype=torch.long), tokens=7)
    assert weighting.fit(apart, "logit").tolist() == [0.5, 0.5]
    assert weighting.fit(apart, "linear").tolist() == [0.5, 0.5]
    impossible = replace(random_evidence(0), pieces=np.full((2, 3), -np.inf))
    assert weighting.fit(impossible, "linear").tolist() == [0.5, 0.5]


def test_uniform_needs_no_prompt():
    assert not Uniform.needs_losses
    assert Uniform().for_members(["a", "b"]).tolist() == [0.5, 0.5]
    assert Sim().for_members(["a", "b"]) is None


def test_top1_takes_the_lowest_loss_and_of_equals_the_first():
    losses = np.array([3.0, 2.0, np.inf, 2.0])
    assert Top1().fit(Evidence(losses, 1, np.zeros((4, 0))), "logit").tolist() == [0, 1, 0, 0]


@given(
    losses=st.lists(st.floats(0, 50), min_size=1, max_size=5),
    tau=st.floats(0.1, 10),
)
def test_sim_is_the_papers_formula(losses: list[float], tau: float):
    evidence = Evidence(np.array(losses), 5, np.zeros((len(losses), 0)))
    weights = Sim(tau=tau, shrinkage=0).fit(evidence, "logit")
    np.testing.assert_allclose(weights, oracles.sim(losses, tau), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([np.inf, 2.0, 2.0], [0, 0.5, 0.5]),
        ([np.inf, np.inf], [0.5, 0.5]),
        ([1e308, 0.0], [0, 1]),
        ([1000.0, 1000.0], [0.5, 0.5]),
    ],
)
def test_sim_handles_infinite_and_huge_losses(losses: list[float], expected: list[float]):
    evidence = Evidence(np.array(losses), 5, np.zeros((len(losses), 0)))
    weights = Sim(tau=1e-9, shrinkage=0).fit(evidence, "linear")
    np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize("weighting", [Opt, Exact])
def test_short_prompts_shrink_towards_equal_weights(weighting: type[Fitted]):
    """Two members: one is certain and right, the other certain and wrong."""
    scores = torch.tensor([[[-1e-9, -20.0]], [[-20.0, -1e-9]]], dtype=torch.float64)
    evidence = from_scores(scores, torch.tensor([0]))
    shrunk = weighting(shrinkage=8, prior="equal")
    for tokens, expected in [(1, 5 / 9), (8, 0.75), (792, 0.995)]:
        for pool in POOLS:
            found = shrunk.fit(replace(evidence, tokens=tokens), pool)
            np.testing.assert_allclose(found, [expected, 1 - expected], atol=1e-8)
    for pool in POOLS:
        np.testing.assert_allclose(weighting(shrinkage=0).fit(evidence, pool), [1, 0], atol=1e-8)


@pytest.mark.parametrize("weighting", [Opt, Exact])
def test_short_prompts_shrink_towards_the_softmax_of_the_losses(weighting: type[Fitted]):
    evidence = random_evidence(3, members=3)
    evidence = replace(evidence, losses=np.array([2.5, 3.1, 11.4]), tokens=5)
    for pool in POOLS:
        bare = weighting(shrinkage=0).fit(evidence, pool)
        odds = np.exp([0, -0.6, -8.9])
        if weighting is Opt:
            expected = (5 * bare + 32 * odds / odds.sum()) / 37
            np.testing.assert_allclose(weighting(shrinkage=32).fit(evidence, pool), expected)
        found = weighting(shrinkage=1e9).fit(evidence, pool)
        np.testing.assert_allclose(found, odds / odds.sum(), atol=1e-7)


def test_a_member_to_which_a_few_words_are_impossible_gets_almost_no_weight():
    """Five words to which two members give a high probability, and the third nearly none."""
    evidence = random_evidence(3, members=3, positions=5)
    evidence = replace(evidence, losses=np.array([2.5, 3.1, 11.4]))
    assert evidence.scores is not None
    assert evidence.labels is not None
    lost = evidence.scores.clone()
    lost[2] = (lost[2] - 8.9 * torch.nn.functional.one_hot(evidence.labels, 12)).log_softmax(-1)
    for weighting in (Sim(), Opt(), Exact()):
        assert weighting.fit(replace(evidence, scores=lost), "logit")[2] < 0.01


def twin_of_opt(evidence: Evidence, *, early_stop: bool) -> list[float]:
    assert evidence.scores is not None
    assert evidence.labels is not None
    return oracles.opt(
        evidence.scores.tolist(),
        evidence.labels.tolist(),
        evidence.losses.tolist(),
        early_stop=early_stop,
    )


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("members", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_opt_is_the_papers_search(members: int, seed: int, early_stop: bool):
    evidence = random_evidence(seed, members)
    found = Opt(early_stop=early_stop, shrinkage=0).fit(evidence, "logit")
    np.testing.assert_allclose(found, twin_of_opt(evidence, early_stop=early_stop), atol=1e-12)


def three_members() -> Evidence:
    """One that is mostly right, one with the same errors and more, and one without these errors."""
    good, bad = math.log(0.8), math.log(0.2)
    best = [[good, bad], [good, bad], [bad, good]]
    worse = [[good, bad], [good, bad], [-3.0, math.log1p(-math.exp(-3))]]
    other = [[bad, good], [math.log(0.3), math.log(0.7)], [math.log(0.9), math.log(0.1)]]
    scores = torch.tensor([best, worse, other], dtype=torch.float64)
    return from_scores(scores, torch.tensor([0, 0, 0]))


def test_the_early_stop_leaves_out_all_later_members():
    order = replace(three_members(), losses=np.array([1.0, 2.0, 3.0]))
    stopped = Opt(shrinkage=0).fit(order, "logit")
    assert stopped.tolist() == [1, 0, 0] == twin_of_opt(order, early_stop=True)
    searched = Opt(early_stop=False, shrinkage=0).fit(order, "logit")
    assert searched[1] == 0 < searched[2] < 1
    np.testing.assert_allclose(searched, twin_of_opt(order, early_stop=False), atol=1e-12)


def test_members_join_by_prompt_loss():
    evidence = random_evidence(3, members=3)
    order = np.array([2.0, 1.0, 3.0])
    for losses in (order, order[::-1].copy(), np.roll(order, 1)):
        ordered = replace(evidence, losses=losses)
        found = Opt(shrinkage=0, early_stop=False).fit(ordered, "logit")
        np.testing.assert_allclose(found, twin_of_opt(ordered, early_stop=False), atol=1e-12)


@pytest.mark.parametrize(("step", "shares"), [(0.05, 20), (0.25, 4), (1.0, 1), (0.1, 10)])
def test_opts_grid_runs_from_zero_to_one(step: float, shares: int):
    found = Opt(step=step, shrinkage=0).fit(random_evidence(5), "logit")
    assert (found * shares).round(9).tolist() == (found * shares).round().tolist()


def test_a_step_that_does_not_divide_one_still_reaches_one():
    scores = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64).log()
    evidence = from_scores(scores, torch.tensor([0]))
    assert Opt(step=0.3, shrinkage=0).fit(evidence, "linear").tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_opt_searches_probabilities_for_a_linear_pool(seed: int):
    evidence = random_evidence(seed, spread=3)
    best, other = evidence.losses.argsort()
    pieces = evidence.pieces.tolist()

    def loss(share: float) -> float:
        weights = [0.0, 0.0]
        weights[best], weights[other] = share, 1 - share
        return oracles.linear_nll(pieces, weights)

    share = min((i / 20 for i in range(21)), key=loss)
    found = Opt(shrinkage=0).fit(evidence, "linear")
    np.testing.assert_allclose(found[[best, other]], [share, 1 - share], atol=1e-12)


@pytest.mark.parametrize("weighting", [Opt(), Exact()], ids=repr)
def test_scores_are_needed_for_logit_pools_only(weighting: Weighting):
    assert weighting.needs_scores("logit")
    assert not weighting.needs_scores("linear")
    unscored = replace(random_evidence(0), scores=None, labels=None)
    assert weighting.fit(unscored, "linear").sum() == pytest.approx(1)
    with pytest.raises(WeightsError, match="fitted to scores"):
        weighting.fit(unscored, "logit")
    with pytest.raises(WeightsError, match="'median' pool"):
        weighting.fit(unscored, "median")


def test_losses_that_are_not_numbers_are_refused():
    with pytest.raises(WeightsError, match="member 1 "):
        Evidence(np.array([1.0, np.nan]), 3, np.zeros((2, 0)))


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "sim", "tau": 0},
        {"name": "opt", "step": 0},
        {"name": "opt", "step": 1.5},
        {"name": "exact", "shrinkage": -1},
        {"name": "exact", "shrinkage": math.inf},
        {"name": "uniform", "normalize": "words"},
    ],
)
def test_parameters_out_of_range_are_refused(spec):
    with pytest.raises(ConfigError):
        weightings().make(spec)


def test_fixed_weights_go_by_name_or_by_order():
    named = Fixed(weights={"b": 0.75, "a": 0.25})
    assert named.for_members(["a", "b", "c"]).tolist() == [0.25, 0.75, 0]
    assert Fixed(weights=(0.25, 0.75)).for_members(["a", "b"]).tolist() == [0.25, 0.75]
    nearly = Fixed(weights={"a": 1 / 3 + 5e-7, "b": 2 / 3}).for_members(["a", "b"])
    assert nearly.sum() == pytest.approx(1, abs=1e-12)
    assert not Fixed.needs_losses


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 0.5, "smol": 0.5}, r"'smol'.*known: a, smoll; did you mean 'smoll'\?"),
        ({"a": 1.5, "smoll": -0.5}, "the weight of 'smoll' is -0.5"),
        ({"a": math.nan, "smoll": 1.0}, "the weight of 'a' is nan"),
        ({"a": math.inf, "smoll": 0.0}, "the weight of 'a' is inf"),
        ({"a": 0.5, "smoll": 0.3}, r"sum to 0.8, not to 1 \(write a: 0.625, smoll: 0.375\)"),
        ({"a": 0.500002, "smoll": 0.5}, "sum to 1.000002, not to 1"),
        ({"a": 0.0, "smoll": 0.0}, "sum to 0, not to 1 .*above 0"),
        ({}, "sum to 0, not to 1"),
        ((0.5, 0.25, 0.25), "3 weights for 2 members .*a, smoll"),
        ((1.5, -0.5), "the weight of 'smoll' is -0.5"),
    ],
)
def test_invalid_fixed_weights_are_refused(weights, message: str):
    with pytest.raises(WeightsError, match=message):
        Fixed(weights=weights).for_members(["a", "smoll"])


def test_fixed_weights_are_not_fitted():
    with pytest.raises(WeightsError, match="for_members"):
        Fixed(weights={"a": 1.0}).fit(random_evidence(0), "logit")
