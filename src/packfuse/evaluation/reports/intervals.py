"""Figures with bootstrap intervals, and paired differences (`scipy.stats.bootstrap`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import bootstrap

RESAMPLES = 4999
LEVEL = 0.95


class Figure(BaseModel):
    """A measured value.

    Attributes:
        value: The value on all questions.
        low: Lower end of the 95 % bootstrap interval (percentiles over resampled questions).
        high: Upper end of that interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float], seed: int) -> Figure:
    """The mean of one value per question."""
    return ratio(values, np.ones(len(values)), seed)


def ratio(numerators: ArrayLike, denominators: ArrayLike, seed: int) -> Figure:
    """Sum of numerators over sum of denominators; both are resampled together by question.

    Example:
        >>> ratio([1.0, 3.0], [1.0, 1.0], seed=0).value
        2.0
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    value = float(top.sum() / bottom.sum())
    if len(top) < 2 or np.ptp(top / bottom) == 0:
        return Figure(value=value, low=value, high=value)

    def statistic(
        top: NDArray[np.float64], bottom: NDArray[np.float64], axis: int = -1
    ) -> NDArray[np.float64]:
        ratios: NDArray[np.float64] = top.sum(axis) / bottom.sum(axis)
        return ratios

    interval = bootstrap(
        (top, bottom),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Figure(value=value, low=float(interval.low), high=float(interval.high))


def difference(
    one: Sequence[float], other: Sequence[float], sizes: Sequence[float], seed: int
) -> Figure:
    """`one` minus `other` on the same questions, per unit of `sizes`, by a paired bootstrap."""
    return ratio(np.asarray(one, float) - np.asarray(other, float), sizes, seed)


def in_bits(nats: Sequence[float]) -> list[float]:
    """Nats converted to bits."""
    return [value / math.log(2) for value in nats]


def with_interval(figure: Figure, *, bits: bool) -> str:
    """A figure with its interval.

    Args:
        figure: A loss in bits per byte, or a share.
        bits: Whether it is a loss.
    """
    if bits:
        return f"{figure.value:.4f} ({figure.low:.3f} to {figure.high:.3f})"
    return f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"


def signed(figure: Figure, *, bits: bool) -> str:
    """A difference with its interval and its sign; shares in percentage points."""
    if bits:
        return f"{figure.value:+.4f} ({figure.low:+.4f} to {figure.high:+.4f})"
    points = [f"{100 * value:+.1f}" for value in (figure.value, figure.low, figure.high)]
    return f"{points[0]} ({points[1]} to {points[2]})"
