"""The results of a benchmark: rows that compare two figures, and their targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, computed_field


class Target(BaseModel):
    """The bound of a ratio: an upper one, or with `least` a lower one."""

    value: float
    least: bool = False

    def __str__(self) -> str:
        """The bound in words."""
        return f"at {'least' if self.least else 'most'} {self.value:g}"

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is within the bound."""
        return ratio >= self.value if self.least else ratio <= self.value


class Row(BaseModel):
    """One comparison.

    Attributes:
        what: What was measured.
        against: What it is compared with.
        ours: Median of ours, in `unit`.
        other: Median of the other, in `unit`.
        unit: The unit of both.
        ratios: Ours / other by round; other / ours for a speed-up.
        target: The bound of the ratio, if there is one.
        note: Further facts.
        skipped: Why nothing was measured.
    """

    what: str
    against: str = ""
    ours: float | None = None
    other: float | None = None
    unit: str = "s"
    ratios: list[float] = Field(default_factory=list)
    target: Target | None = None
    note: str = ""
    skipped: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> float | None:
        """Median over the rounds."""
        return statistics.median(self.ratios) if self.ratios else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a measurement."""
        if self.target is None or self.ratio is None:
            return None
        return self.target.holds(self.ratio)


class Part(BaseModel):
    """The comparisons of one part; `about` is how they were measured."""

    title: str
    about: str
    rows: list[Row]
    seconds: float = 0.0


class Report(BaseModel):
    """One run of the command; `seconds` is how long it took."""

    machine: dict[str, str | int]
    options: dict[str, Any]
    parts: dict[str, Part]
    seconds: float = 0.0


def compare(
    what: str,
    against: str,
    ours: Sequence[float],
    others: Sequence[float],
    *,
    speedup: bool = False,
    **more: Any,
) -> Row:
    """A row from one number a round on either side; `speedup` makes the ratio other / ours."""
    pairs = zip(ours, others, strict=True)
    return Row(
        what=what,
        against=against,
        ours=statistics.median(ours),
        other=statistics.median(others),
        ratios=[other / own if speedup else own / other for own, other in pairs],
        **more,
    )
