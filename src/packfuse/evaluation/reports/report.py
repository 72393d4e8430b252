"""The results of an evaluation: one row per system, each figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.intervals import Figure, difference, in_bits, mean, ratio

Outcomes = Mapping[Question, Outcome]


class Differences(BaseModel):
    """A system's figures minus the best member's, on the questions that both have outcomes of.

    Attributes:
        accuracy: Difference of accuracies.
        raw: Difference of accuracies without normalization.
        bits_per_byte: Difference of losses, bits per byte; negative if the system is better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: Figure | None = None
    raw: Figure | None = None
    bits_per_byte: Figure | None = None


class ReportRow(BaseModel):
    """One system.

    Attributes:
        label: Name in tables: a member's name, or the label of the setting.
        member: Whether the system is a member alone.
        setting: The setting as plain JSON; None for a member alone.
        questions: Number of questions with an outcome.
        accuracy: Share of right answers; None for plain text.
        raw: The same by log-likelihood without normalization, or among the options alone.
        bits_per_byte: Loss on the right answers, bits per byte; None if they were not scored.
        tokens_per_second: Tokens read and generated per second; settings that share a forward
            pass share its time.
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
    questions: int
    accuracy: Figure | None = None
    raw: Figure | None = None
    bits_per_byte: Figure | None = None
    tokens_per_second: float = 0.0
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

    @property
    def packs(self) -> list[ReportRow]:
        """The rows of the pack's settings."""
        return [row for row in self.rows if not row.member]


_FIGURES = ("accuracy", "raw", "bits_per_byte")


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
        questions: Number of questions.
        seed: Seed of the bootstrap intervals.
    """
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
        row.model_copy(update={"against": _differences(row.label, best, outcomes, seed)})
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
    sign = 1 if name == "bits_per_byte" else -1
    return min(known, key=lambda pair: sign * pair[0].value)[1]


def _differences(
    label: str, best: Mapping[str, str], outcomes: Mapping[str, Outcomes], seed: int
) -> Differences:
    figures: dict[str, Figure] = {}
    for name, member in best.items():
        own, base = outcomes[label], outcomes[member]
        common = [question for question in own if question in base]
        pairs = [_pair(name, own[question], base[question]) for question in common]
        known = [pair for pair in pairs if pair is not None]
        if known and label != member:
            ones, others, sizes = zip(*known, strict=True)
            figures[name] = difference(ones, others, sizes, seed)
    return Differences(**figures)


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
