"""The results of an evaluation: one row per system, each figure with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.reports.intervals import (
    Figure,
    signed,
    with_interval,
)
from packfuse.evaluation.reports.selection import (
    Selection,
)
from packfuse.view.tables import Cell, Strong, html_table


class Differences(BaseModel):
    """A system's figures minus the best member's, on the questions that both have outcomes of.

    Attributes:
        accuracy: Difference of accuracies.
        raw: Difference of accuracies without normalization.
        bits_per_byte: Difference of losses, bits per byte; negative if the system is better.
        samples: Difference of accuracies to the best member's majority of several samples.
        needed: Questions that would show a difference of one point in accuracy, by the spread of
            these (95 % interval, found in 80 % of cases); None if no grade differs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: Figure | None = None
    raw: Figure | None = None
    bits_per_byte: Figure | None = None
    samples: Figure | None = None
    needed: int | None = None


class ReportRow(BaseModel):
    """One system.

    Attributes:
        label: Name in tables: a member's name, or the label of the setting.
        member: Whether the system is a member alone.
        setting: The setting as plain JSON; None for members.
        samples: For the majority of several samples of the best member, how many; else None.
        questions: Number of questions with an outcome.
        accuracy: Share of right answers; None for plain text.
        raw: The same by log-likelihood without normalization, or among the options alone.
        bits_per_byte: Loss on the right answers, bits per byte; None if they were not scored.
        tokens_per_second: Tokens read and generated per second; settings that share a forward
            pass share its time.
        seconds: Mean wall-clock seconds an answer, with the others of its batch.
        member_tokens: Mean tokens that members read and wrote for an answer, each in its own tokens
            and summed over the members; where options are scored, in the reference's tokens.
        only: Share of questions that the system gets right and no member does; None for members.
        length: Mean characters of the generated answers; None if none was generated.
        inexact: Questions for which bytes other than the answer's were scored as well.
        impossible: Tokens without probability.
        weights: Mean weight of each member by name.
        against: Differences to the best member alone.
        failed: The error at which the system stopped; None if it finished.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    member: bool
    setting: dict[str, Any] | None
    samples: int | None = None
    questions: int
    accuracy: Figure | None = None
    raw: Figure | None = None
    bits_per_byte: Figure | None = None
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    member_tokens: float = 0.0
    only: Figure | None = None
    length: float | None = None
    inexact: int = 0
    impossible: int = 0
    weights: dict[str, float] = {}
    against: Differences = Differences()
    failed: str | None = None


class Evaluation(BaseModel):
    """The results on one file under one task.

    Attributes:
        source: The file, or the name of the lm-eval task.
        task: The task with its parameters.
        verdict: Name of the accuracy metric.
        seed: Seed of the order of questions and of the intervals.
        questions: Number of questions.
        skipped: Lines without a usable question: their answer is none of their options.
        broken: Errors of lines that could not be read.
        unread: By location, the error of each question that some system could not read.
        members: Names of the members, in the pack's order.
        best: Name of the best member by figure.
        selection: What choosing among the members' answers could reach; None without such grades.
        rows: The systems, members first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    task: dict[str, Any]
    verdict: str
    seed: int
    questions: int
    skipped: list[str]
    broken: list[str] = []
    unread: dict[str, str]
    members: list[str]
    best: dict[str, str]
    selection: Selection | None = None
    rows: list[ReportRow]

    def row(self, label: str) -> ReportRow:
        """The row of a system by its label.

        Raises:
            KeyError: if there is no such system.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(label)

    def __repr__(self) -> str:
        """The questions, and the best member and the best setting by the first figure."""
        return f"Evaluation({', '.join([self._asked, *self._best_by_kind()])})"

    __str__ = __repr__

    @property
    def _asked(self) -> str:
        return f"{self.questions} questions of {self.source.rpartition('/')[2]}"

    def _best_by_kind(self) -> list[str]:
        """The best member and the best setting, with the first figure that is known."""
        name = next((own for own in FIGURES if own in self.best), None)
        if name is None:
            return []
        known = [row for row in self.packs if getattr(row, name) is not None]
        packs = sorted(known, key=lambda row: sign(name) * getattr(row, name).value)[:1]
        return [
            f"{row.label} {getattr(row, name).value:.3f}"
            for row in (self.row(self.best[name]), *packs)
        ]

    def _repr_html_(self) -> str:
        """A table with one row per system."""
        stopped = [f"{row.label} stopped: {row.failed}" for row in self.rows if row.failed]
        return html_table(self._asked, *self.table(), ["Intervals: 95 %.", *stopped])

    def table(self, rows: Iterable[ReportRow] | None = None) -> tuple[list[str], list[list[Cell]]]:
        """Headings and cells, one row per system.

        Args:
            rows: The systems; all by default.
        """
        shown = list(self.rows if rows is None else rows)
        names = [name for name in FIGURES if any(getattr(row, name) for row in shown)]
        only = any(row.only for row in shown)
        heads = ["system"]
        for name in names:
            heads += [self.title(name), "minus best member"]
        heads += ["only it is right"] * only + ["weights", "s", "member tokens", "tokens/s"]
        return heads, [_cells(row, names, only) for row in shown]

    def title(self, name: str) -> str:
        """What a figure is called in tables."""
        letter = self.task["name"] == "letter"
        raw = "letter likelihood" if letter else f"{self.verdict}, raw"
        return {"accuracy": self.verdict, "raw": raw, "bits_per_byte": "bits/byte"}[name]

    @property
    def packs(self) -> list[ReportRow]:
        """The rows of the pack's settings."""
        return [row for row in self.rows if row.setting is not None]

    @property
    def sampled(self) -> ReportRow | None:
        """The row of the best member's majority of several samples."""
        return next((row for row in self.rows if row.samples), None)


FIGURES = ("accuracy", "raw", "bits_per_byte")


def _cells(row: ReportRow, names: Sequence[str], only: bool) -> list[Cell]:
    """A row of `Evaluation.table`, with the figures of these names."""
    cells: list[Cell] = [Strong(row.label) if row.member else row.label]
    for name in names:
        figure, gap = getattr(row, name), getattr(row.against, name)
        bits = name == "bits_per_byte"
        cells.append(with_interval(figure, bits=bits) if figure else "")
        shown = signed(gap, bits=bits) if gap else ""
        cells.append(Strong(shown) if gap and gap.excludes_zero else shown)
    if only:
        cells.append(with_interval(row.only, bits=False) if row.only else "")
    shares = [f"{share:.2f}" for share in row.weights.values()]
    return [
        *cells,
        "" if row.setting is None else " / ".join(shares),
        f"{row.seconds:.2f}",
        f"{row.member_tokens:.0f}",
        f"{row.tokens_per_second:.0f}",
    ]


def sign(name: str) -> int:
    """1 where the lowest figure is the best, -1 where the highest is."""
    return 1 if name == "bits_per_byte" else -1
