"""Intervals, against a paired bootstrap in plain numpy, and where there is nothing to resample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packfuse.evaluation.reports import intervals
from packfuse.evaluation.reports.intervals import Figure, difference, in_bits, mean, ratio

RNG = np.random.default_rng(7)
SIZES = RNG.integers(3, 40, 60).astype(float)
LOSSES = SIZES * RNG.gamma(2.0, 0.5, 60)
GRADES = (RNG.random(60) < 0.7).astype(float)


def twin(top: np.ndarray, bottom: np.ndarray, draws: int = 20_000) -> tuple[float, float]:
    """Draw questions with replacement, take sum over sum, and read off the percentiles."""
    rng = np.random.default_rng(123)
    found = []
    for _ in range(draws):
        drawn = rng.integers(0, len(top), len(top))
        found.append(sum(top[drawn]) / sum(bottom[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize(
    ("top", "bottom"),
    [(LOSSES, SIZES), (GRADES, np.ones(60)), (LOSSES[:5] - 2, SIZES[:5])],
    ids=["loss", "grades", "few"],
)
def test_a_ratio_and_its_interval(top: np.ndarray, bottom: np.ndarray) -> None:
    found = ratio(top, bottom, seed=0)
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    low, high = twin(top, bottom, 4000)
    # Two bootstraps with other draws: their ends differ by a few hundredths of the width.
    assert found.low == pytest.approx(low, abs=0.08 * (high - low))
    assert found.high == pytest.approx(high, abs=0.08 * (high - low))
    assert found.low < found.value < found.high


def test_a_difference_is_paired() -> None:
    """Questions differ far more than the systems do: only pairing shows a difference."""
    better = LOSSES - 0.01 * SIZES - 0.002 * SIZES * GRADES
    found = difference(LOSSES.tolist(), better.tolist(), SIZES.tolist(), seed=0)
    low, high = twin(LOSSES - better, SIZES, 4000)
    assert found.value == pytest.approx((LOSSES - better).sum() / SIZES.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))
    assert found.excludes_zero
    assert ratio(LOSSES, SIZES, 0).high - ratio(LOSSES, SIZES, 0).low > 20 * (
        found.high - found.low
    )


def test_a_mean_is_a_ratio_to_one_each() -> None:
    assert mean(GRADES.tolist(), 3) == ratio(GRADES, np.ones(60), 3)


def test_the_seed_decides() -> None:
    assert ratio(LOSSES, SIZES, 1) == ratio(LOSSES, SIZES, 1)
    assert ratio(LOSSES, SIZES, 1) != ratio(LOSSES, SIZES, 2)


@pytest.mark.parametrize("values", [[0.7], [0.25] * 9, [0.0, 0.0]])
def test_where_nothing_varies_the_interval_is_a_point(values: list[float]) -> None:
    found = mean(values, 0)
    assert (found.low, found.value, found.high) == (values[0],) * 3
    assert difference(values, values, [1.0] * len(values), 0) == Figure(value=0, low=0, high=0)


def test_one_loss_per_byte_with_any_sizes_is_a_point() -> None:
    found = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], 0)
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (0, 0, False)],
)
def test_an_interval_that_touches_zero_includes_it(low: float, high: float, expected: bool) -> None:
    assert Figure(value=(low + high) / 2, low=low, high=high).excludes_zero == expected


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8), st.integers(0, 5))
def test_the_value_is_never_outside_what_was_measured(values: list[float], seed: int) -> None:
    full = intervals.RESAMPLES
    intervals.RESAMPLES = 200
    try:
        found = mean(values, seed)
    finally:
        intervals.RESAMPLES = full
    assert found.value == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_nats_become_bits() -> None:
    assert in_bits([math.log(2), math.log(8), 0.0]) == pytest.approx([1.0, 3.0, 0.0])
