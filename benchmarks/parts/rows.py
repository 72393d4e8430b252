"""What a measurement leaves behind: rows of ours against something else, and their targets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, computed_field


class Target(BaseModel):
    """What a ratio has to be.

    Attributes:
        value: The bound.
        least: Whether it is a lower bound; an upper one otherwise.
    """

    value: float
    least: bool = False

    def __str__(self) -> str:
        """As people say it."""
        return f"at {'least' if self.least else 'most'} {self.value:g}"

    def holds(self, ratio: float) -> bool:
        """Whether a ratio is within the bound."""
        return ratio >= self.value if self.least else ratio <= self.value


class Row(BaseModel):
    """One comparison.

    Attributes:
        what: What was measured.
        against: What it is divided by, or for a speed-up what is divided by it.
        ours: Median, in `unit`.
        other: Median of what it is compared with, in `unit`.
        unit: Of both.
        ratios: By round.
        target: What the ratio has to be, if anything was asked.
        note: What else to know.
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
    """The rows of one part.

    Attributes:
        title: What it is about.
        about: How it was measured.
        rows: The comparisons.
        seconds: How long measuring took.
    """

    title: str
    about: str
    rows: list[Row]
    seconds: float = 0.0


class Report(BaseModel):
    """One run of the command.

    Attributes:
        machine: What it ran on.
        options: How it was called.
        parts: By name.
        seconds: How long it took.
    """

    machine: dict[str, str | int]
    options: dict[str, Any]
    parts: dict[str, Part]
    seconds: float = 0.0

    @property
    def targets(self) -> list[Row]:
        """The rows of which something was asked."""
        return [row for part in self.parts.values() for row in part.rows if row.target]


def compare(
    what: str,
    against: str,
    ours: Sequence[float],
    others: Sequence[float],
    *,
    speedup: bool = False,
    **more: Any,
) -> Row:
    """A row from one number a round on either side.

    Args:
        what: See `Row`.
        against: Likewise.
        ours: By round.
        others: By round.
        speedup: The ratio is other / ours.
        **more: Further fields of `Row`.
    """
    pairs = zip(ours, others, strict=True)
    return Row(
        what=what,
        against=against,
        ours=statistics.median(ours),
        other=statistics.median(others),
        ratios=[other / own if speedup else own / other for own, other in pairs],
        **more,
    )
