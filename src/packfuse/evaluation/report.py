"""The result of an evaluation: one row a system, everything with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.intervals import Figure, difference, in_bits, mean, ratio
from packfuse.evaluation.question import Outcome, Question

Answered = Mapping[Question, Outcome]


class Against(BaseModel):
    """A system minus the best member, on the questions that both answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: Figure | None = None
    raw: Figure | None = None
    bits_per_byte: Figure | None = None


class ReportRow(BaseModel):
    """One system.

    Attributes:
        label: What tables call it: a member's name, or the setting.
        member: Whether it is a member alone.
        setting: The setting as plain JSON; None for a member alone.
        questions: How many it answered.
        accuracy: Share answered rightly; None for plain text.
        raw: The same by likelihood not divided by length, or among the options alone.
        bits_per_byte: Loss on the right answer; None where it was not scored.
        tokens_per_second: Read and written; settings that shared a reading share its time.
        length: Mean characters written; None where nothing was.
        inexact: Questions where some other bytes than the answer's were scored as well.
        impossible: Tokens that had no probability.
        weights: By member, the mean over the questions.
        against: This minus the best member alone, by each figure.
        failed: Why it stopped before the end, if it did.
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
    against: Against = Against()
    failed: str | None = None


class Evaluation(BaseModel):
    """One file under one task.

    Attributes:
        source: The file.
        task: With its parameters.
        verdict: What accuracy means here.
        seed: Of the choice of questions and of the intervals.
        questions: How many were asked.
        skipped: Lines that could not be asked: their answer is none of their options.
        unread: Questions that some system could not read, by the reason.
        members: In the pack's order.
        best: The best member by each figure.
        rows: Members first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    task: dict[str, Any]
    verdict: str
    seed: int
    questions: int
    skipped: list[str]
    unread: dict[str, str]
    members: list[str]
    best: dict[str, str]
    rows: list[ReportRow]

    def row(self, label: str) -> ReportRow:
        """A system by its label.

        Raises:
            KeyError: if there is none.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(label)

    @property
    def packs(self) -> list[ReportRow]:
        """The settings of the pack."""
        return [row for row in self.rows if not row.member]


_FIGURES = ("accuracy", "raw", "bits_per_byte")


def summarize(
    source: str,
    task: dict[str, Any],
    verdict: str,
    answered: Mapping[str, Answered],
    *,
    members: Sequence[str],
    settings: Mapping[str, dict[str, Any]],
    failed: Mapping[str, str],
    skipped: Sequence[str] = (),
    unread: Mapping[str, str] | None = None,
    questions: int,
    seed: int,
) -> Evaluation:
    """Figures for every system, and each minus the best member.

    Args:
        source: Where the questions come from.
        task: Their kind, with its parameters.
        verdict: What being right is called.
        answered: By label, the outcome of each question.
        members: Names of the members; they are labels too.
        settings: By label of a setting, what it is.
        failed: By label, why a system stopped.
        skipped: Lines that could not be asked.
        unread: Questions that could not be read.
        questions: How many were asked.
        seed: Of the intervals.
    """
    rows = {
        label: _row(label, outcomes, settings.get(label), failed.get(label), seed)
        for label, outcomes in answered.items()
    }
    best = {
        name: found
        for name in _FIGURES
        if (found := _best(name, [rows[m] for m in members if m in rows])) is not None
    }
    compared = [
        row.model_copy(update={"against": _against(row.label, best, answered, seed)})
        for row in rows.values()
    ]
    return Evaluation(
        source=source,
        task=task,
        verdict=verdict,
        seed=seed,
        questions=questions,
        skipped=list(skipped),
        unread=dict(unread or {}),
        members=list(members),
        best=best,
        rows=compared,
    )


def _row(
    label: str,
    outcomes: Answered,
    setting: dict[str, Any] | None,
    failed: str | None,
    seed: int,
) -> ReportRow:
    found = list(outcomes.values())
    if not found:
        return ReportRow(
            label=label, member=setting is None, setting=setting, questions=0, failed=failed
        )
    seconds = sum(outcome.seconds for outcome in found)
    bits, sizes = losses(found)
    wrote = any(outcome.length for outcome in found)
    return ReportRow(
        label=label,
        member=setting is None,
        setting=setting,
        questions=len(found),
        accuracy=_share([outcome.right for outcome in found], seed),
        raw=_share([outcome.raw for outcome in found], seed),
        bits_per_byte=ratio(bits, sizes, seed) if sizes else None,
        tokens_per_second=sum(outcome.tokens for outcome in found) / seconds if seconds else 0.0,
        length=sum(outcome.length for outcome in found) / len(found) if wrote else None,
        inexact=sum(not outcome.exact for outcome in found),
        impossible=sum(outcome.impossible for outcome in found),
        weights={
            name: sum(outcome.weights.get(name, 0.0) for outcome in found) / len(found)
            for name in found[0].weights
        },
        failed=failed,
    )


def losses(outcomes: Sequence[Outcome]) -> tuple[list[float], list[int]]:
    """Loss on the right answers, bits, and the bytes it was taken on, of those that were scored."""
    scored = [(o.nats, o.bytes) for o in outcomes if o.nats is not None and o.bytes]
    return in_bits([nats for nats, _ in scored]), [size for _, size in scored]


def _share(verdicts: Sequence[bool | None], seed: int) -> Figure | None:
    known = [float(verdict) for verdict in verdicts if verdict is not None]
    return mean(known, seed) if known else None


def _best(name: str, rows: Sequence[ReportRow]) -> str | None:
    """The member with the highest accuracy, or the lowest loss.

    One that stopped early counts only if all did: it may have been lucky with its few questions.
    """
    every = [row for row in rows if getattr(row, name) is not None]
    whole = [row for row in every if not row.failed]
    known = [(getattr(row, name), row.label) for row in whole or every]
    if not known:
        return None
    sign = 1 if name == "bits_per_byte" else -1
    return min(known, key=lambda pair: sign * pair[0].value)[1]


def _against(
    label: str, best: Mapping[str, str], answered: Mapping[str, Answered], seed: int
) -> Against:
    found: dict[str, Figure] = {}
    for name, member in best.items():
        mine, its = answered[label], answered[member]
        both = [question for question in mine if question in its]
        pairs = [_pair(name, mine[question], its[question]) for question in both]
        known = [pair for pair in pairs if pair is not None]
        if known and label != member:
            ones, others, sizes = zip(*known, strict=True)
            found[name] = difference(ones, others, sizes, seed)
    return Against(**found)


def _pair(name: str, mine: Outcome, its: Outcome) -> tuple[float, float, float] | None:
    """Both systems' numbers on one question, and the size they are measured by."""
    if name == "bits_per_byte":
        if mine.nats is None or its.nats is None or not mine.bytes or not its.bytes:
            return None
        # Where other bytes were scored, their loss stands for as many as the member's.
        one, other = in_bits([mine.nats * its.bytes / mine.bytes, its.nats])
        return one, other, float(its.bytes)
    field = "right" if name == "accuracy" else "raw"
    one_, other_ = getattr(mine, field), getattr(its, field)
    return None if one_ is None or other_ is None else (float(one_), float(other_), 1.0)
