"""The results of an evaluation: one row per system, each figure with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.intervals import (
    Figure,
    difference,
    in_bits,
    mean,
    ratio,
    signed,
    with_interval,
)
from packfuse.evaluation.reports.selection import (
    Selection,
    only_right,
    questions_needed,
    selection,
)
from packfuse.view.tables import Cell, Strong, html_table

Outcomes = Mapping[Question, Outcome]


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
        name = next((own for own in _FIGURES if own in self.best), None)
        if name is None:
            return []
        known = [row for row in self.packs if getattr(row, name) is not None]
        packs = sorted(known, key=lambda row: _sign(name) * getattr(row, name).value)[:1]
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
        names = [name for name in _FIGURES if any(getattr(row, name) for row in shown)]
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


_FIGURES = ("accuracy", "raw", "bits_per_byte")


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


def _sign(name: str) -> int:
    """1 where the lowest figure is the best, -1 where the highest is."""
    return 1 if name == "bits_per_byte" else -1


def summarize(
    source: str,
    task: dict[str, Any],
    metric: str,
    outcomes: Mapping[str, Outcomes],
    *,
    members: Sequence[str],
    settings: Mapping[str, dict[str, Any]],
    failed: Mapping[str, str],
    skipped: Sequence[str] = (),
    broken: Sequence[str] = (),
    unread: Mapping[str, str] | None = None,
    samples: Mapping[str, int] | None = None,
    questions: int,
    seed: int,
) -> Evaluation:
    """The figures of every system, and their differences to the best member.

    Args:
        source: The file, or the name of the lm-eval task.
        task: The task with its parameters.
        metric: Name of the accuracy metric.
        outcomes: By label, the outcome of each question.
        members: Names of the members; each is a label.
        settings: Settings as plain JSON, by label.
        failed: By label, the error at which a system stopped.
        skipped: Lines without a usable question.
        broken: Errors of lines that could not be read.
        unread: By location, the error of each question that could not be read.
        samples: By label of a majority of samples, how many there are.
        questions: Number of questions.
        seed: Seed of the bootstrap intervals.
    """
    samples = samples or {}
    alone = [outcomes[name] for name in members if name in outcomes]
    rows = {
        label: _row(label, list(known.values()), settings.get(label), failed.get(label), seed)
        for label, known in outcomes.items()
    }
    best = {
        name: member
        for name in _FIGURES
        if (member := _best(name, [rows[m] for m in members if m in rows])) is not None
    }
    compared = [
        row.model_copy(
            update={
                "member": row.label in members,
                "samples": samples.get(row.label),
                "against": _differences(row.label, best, outcomes, seed, [*samples]),
                "only": None
                if row.label in members
                else only_right(outcomes[row.label], alone, seed),
            }
        )
        for row in rows.values()
    ]
    return Evaluation(
        source=source,
        task=task,
        verdict=metric,
        seed=seed,
        questions=questions,
        skipped=list(skipped),
        broken=list(broken),
        unread=dict(unread or {}),
        members=list(members),
        best=best,
        selection=selection(alone, seed),
        rows=compared,
    )


def _row(
    label: str,
    outcomes: Sequence[Outcome],
    setting: dict[str, Any] | None,
    failed: str | None,
    seed: int,
) -> ReportRow:
    if not outcomes:
        return ReportRow(
            label=label, member=setting is None, setting=setting, questions=0, failed=failed
        )
    seconds = sum(outcome.seconds for outcome in outcomes)
    bits, sizes = losses(outcomes)
    generated = any(outcome.length for outcome in outcomes)
    return ReportRow(
        label=label,
        member=setting is None,
        setting=setting,
        questions=len(outcomes),
        accuracy=_share([outcome.right for outcome in outcomes], seed),
        raw=_share([outcome.raw for outcome in outcomes], seed),
        bits_per_byte=ratio(bits, sizes, seed) if sizes else None,
        tokens_per_second=sum(outcome.tokens for outcome in outcomes) / seconds if seconds else 0.0,
        seconds=seconds / len(outcomes),
        member_tokens=sum(outcome.member_tokens for outcome in outcomes) / len(outcomes),
        length=sum(outcome.length for outcome in outcomes) / len(outcomes) if generated else None,
        inexact=sum(not outcome.exact for outcome in outcomes),
        impossible=sum(outcome.impossible for outcome in outcomes),
        weights={
            name: sum(outcome.weights.get(name, 0.0) for outcome in outcomes) / len(outcomes)
            for name in outcomes[0].weights
        },
        failed=failed,
    )


def losses(outcomes: Sequence[Outcome]) -> tuple[list[float], list[int]]:
    """Loss on each right answer that was scored, bits, and the bytes that were scored."""
    scored = [(o.nats, o.bytes) for o in outcomes if o.nats is not None and o.bytes]
    return in_bits([nats for nats, _ in scored]), [size for _, size in scored]


def _share(grades: Sequence[bool | None], seed: int) -> Figure | None:
    known = [float(grade) for grade in grades if grade is not None]
    return mean(known, seed) if known else None


def _best(name: str, rows: Sequence[ReportRow]) -> str | None:
    """The member with the highest accuracy, or the lowest loss.

    A member that stopped early counts only if all did: its few questions may have been easy.
    """
    measured = [row for row in rows if getattr(row, name) is not None]
    finished = [row for row in measured if not row.failed]
    known = [(getattr(row, name), row.label) for row in finished or measured]
    if not known:
        return None
    return min(known, key=lambda pair: _sign(name) * pair[0].value)[1]


def _differences(
    label: str,
    best: Mapping[str, str],
    outcomes: Mapping[str, Outcomes],
    seed: int,
    samples: Sequence[str],
) -> Differences:
    found: dict[str, Any] = {}
    compared = {**best, **({"samples": samples[0]} if samples else {})}
    for name, other in compared.items():
        pairs = _pairs("accuracy" if name == "samples" else name, outcomes[label], outcomes[other])
        if not pairs or label == other:
            continue
        ones, others, sizes = zip(*pairs, strict=True)
        found[name] = difference(ones, others, sizes, seed)
        if name == "accuracy":
            found["needed"] = questions_needed([a - b for a, b in zip(ones, others, strict=True)])
    return Differences(**found)


def _pairs(name: str, own: Outcomes, base: Outcomes) -> list[tuple[float, float, float]]:
    """See `_pair`, for the questions that both have outcomes of."""
    pairs = (_pair(name, own[question], base[question]) for question in own if question in base)
    return [pair for pair in pairs if pair is not None]


def _pair(name: str, own: Outcome, base: Outcome) -> tuple[float, float, float] | None:
    """The values of a system and of the best member on one question, and the question's size."""
    if name == "bits_per_byte":
        if own.nats is None or base.nats is None or not own.bytes or not base.bytes:
            return None
        # If the system scored other bytes, its loss is scaled to the member's number of bytes.
        loss, base_loss = in_bits([own.nats * base.bytes / own.bytes, base.nats])
        return loss, base_loss, float(base.bytes)
    field = "right" if name == "accuracy" else "raw"
    grade, base_grade = getattr(own, field), getattr(base, field)
    return None if grade is None or base_grade is None else (float(grade), float(base_grade), 1.0)
