"""The fit on answers drawn from known pools, against grids and its own gradient."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packfuse.evaluation.calibration import fit as fitting
from packfuse.evaluation.calibration.answers import AnswerScores
from packfuse.evaluation.calibration.fit import Calibration, answer_logps, fit
from packfuse.evaluation.calibration.validation import AS_IT_IS, CALIBRATED, cross_validate
from packfuse.weighting.methods.exact import Exact
from tests.evaluation.calibration.questions import drawn


def right(count: int, powers: list[float], seed: int = 0) -> list[AnswerScores]:
    asked = drawn(count, np.array(powers), seed)
    return [one.scores.of_answer(0) for one in asked]


def loss(questions: list[AnswerScores], calibration: Calibration) -> float:
    """What `fit` minimizes, without the distance to the pack as it is."""
    total = -sum(answer_logps(one, calibration)[0] for one in questions)
    return total * len(questions) / sum(len(one.labels) for one in questions)


@pytest.mark.parametrize("powers", [[0.9, 0.1], [0.3, 1.1], [1.4, 0.2], [0.0, 1.0], [0.5, 0.5]])
def test_many_answers_give_the_pool_that_they_were_drawn_from(powers: list[float]) -> None:
    found = fit(right(800, powers))
    assert found.powers(np.array([0.5, 0.5])).tolist() == pytest.approx(powers, abs=0.08)
    assert found.sharpness > 0


def test_a_member_that_is_too_sure_gets_a_temperature_above_one() -> None:
    sure = fit(right(600, [0.5, 0.0]))
    shy = fit(right(600, [2.0, 0.0]))
    assert sure.temperatures[0] == pytest.approx(2.0, abs=0.25)
    assert shy.temperatures[0] == pytest.approx(0.5, abs=0.06)


def test_few_questions_leave_the_pack_nearly_as_it_is() -> None:
    """The distance to the pack as it is falls on the way to what many questions say."""
    asked = right(640, [0.0, 1.2])
    away = []
    for count in (1, 10, 80, 640):
        powers = fit(asked[:count]).powers(np.array([0.5, 0.5]))
        away.append(float(np.abs(powers - [0.5, 0.5]).sum()))
    assert away == sorted(away)
    assert away[0] < 0.9 < 1.1 < away[-1]


def test_the_length_of_answers_does_not_count_as_questions() -> None:
    """Each token ten times is no more evidence than once."""
    asked = right(20, [0.1, 1.2])
    longer = [
        AnswerScores(
            one.logps.repeat(10, 1),
            one.counts.repeat(10, 0),
            one.labels.repeat(10),
            one.answers.repeat(10),
            one.sizes,
            one.weights,
            0,
            one.logp,
        )
        for one in asked
    ]
    one, other = fit(asked), fit(longer)
    assert one.shifts.tolist() == pytest.approx(other.shifts.tolist(), abs=1e-3)
    assert one.scale == pytest.approx(other.scale, abs=1e-3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 10))
def test_no_point_of_a_grid_is_better(seed: int, count: int) -> None:
    """At the fitted temperatures, with the distance to the pack as it is."""
    questions = right(count, [0.2, 0.9], seed)
    found = fit(questions)

    def whole(scale: float, *shifts: float) -> float:
        point = Calibration(found.temperatures, scale, np.array(shifts))
        away = np.array([scale - 1, *shifts])
        return loss(questions, point) + fitting.STRENGTH * float(away @ away)

    best = whole(found.scale, *found.shifts)
    grid = np.linspace(0, 1.5, 5)
    assert best <= min(whole(a, b, c) for a in grid for b in grid for c in grid) + 1e-6


@given(seed=st.integers(0, 999), share=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_the_loss_is_convex(seed: int, share: float) -> None:
    questions = right(5, [0.5, 0.5], seed)
    rng = np.random.default_rng(seed)
    ends = [Calibration(np.array([1.3, 0.7]), *_point(rng)) for _ in range(2)]
    between = Calibration(
        ends[0].temperatures,
        share * ends[0].scale + (1 - share) * ends[1].scale,
        share * ends[0].shifts + (1 - share) * ends[1].shifts,
    )
    mean = share * loss(questions, ends[0]) + (1 - share) * loss(questions, ends[1])
    assert loss(questions, between) <= mean + 1e-9


def _point(rng: np.random.Generator) -> tuple[float, np.ndarray]:
    return float(rng.uniform(0, 2)), rng.uniform(0, 2, 2)


def test_answers_worse_than_chance_leave_the_pack_as_it_is() -> None:
    """Members that are wrong at every token: no power helps, and nothing is fitted to that."""
    questions = right(400, [-1.5, -1.5])
    found = fit(questions)
    assert (found.scale, found.shifts.tolist()) == (1.0, [0.0, 0.0])
    assert np.isfinite(found.temperatures).all()


@pytest.mark.parametrize("found", [Calibration.none(3), Calibration.alone(1, 3)])
def test_the_weighting_says_the_same(found: Calibration) -> None:
    weighting = found.weighting(["a", "b", "c"], Exact(shrinkage=8), 40)
    assert weighting.shrinkage == 8
    assert weighting.questions == 40
    given_ = weighting.for_members(["a", "b", "c"])
    assert (given_ is None) == (found.scale > 0)
    if given_ is not None:
        assert given_.tolist() == [0, 1, 0]
    assert weighting.sharpening is None


# --- what it gains on other questions


def test_gains_are_those_of_questions_that_were_not_fitted_to() -> None:
    found = cross_validate(drawn(120, np.array([0.2, 1.1])), seed=0)
    assert found.best == 1
    assert found.bits[CALIBRATED] < found.bits[AS_IT_IS]
    assert found.gain[CALIBRATED].value == pytest.approx(
        found.members[1] - found.bits[CALIBRATED], abs=1e-9
    )
    fresh = drawn(2000, np.array([0.2, 1.1]), seed=1)
    calibration = fit([one.scores.of_answer(0) for one in drawn(120, np.array([0.2, 1.1]))])
    nats = -sum(float(answer_logps(one.scores, calibration)[0]) for one in fresh)
    bits = nats / np.log(2) / sum(one.size for one in fresh)
    member = -sum(float(one.alone[1, 0]) for one in fresh) / np.log(2)
    truth = member / sum(one.size for one in fresh) - bits
    assert found.gain[CALIBRATED].low <= truth <= found.gain[CALIBRATED].high


def test_members_that_say_the_same_gain_nothing() -> None:
    """Answers drawn from one member: the pack is not better than it."""
    found = cross_validate(drawn(60, np.array([1.0, 0.0])), seed=0)
    assert found.best == 0
    assert not found.is_better(CALIBRATED)
    assert not found.is_better(AS_IT_IS)


def test_accuracy_can_forbid_what_the_loss_allows() -> None:
    found = cross_validate(drawn(80, np.array([0.6, 0.6])), seed=0)
    assert found.is_better(CALIBRATED)
    worse = found.accuracy[CALIBRATED].model_copy(update={"low": -0.2, "high": -0.01})
    found.accuracy[CALIBRATED] = worse
    assert not found.is_better(CALIBRATED)
