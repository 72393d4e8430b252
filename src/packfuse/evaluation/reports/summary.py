"""From the outcomes of every question to the figures of every system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.intervals import (
    Figure,
    difference,
    in_bits,
    mean,
    ratio,
)
from packfuse.evaluation.reports.report import FIGURES, Differences, Evaluation, ReportRow, sign
from packfuse.evaluation.reports.selection import (
    only_right,
    questions_needed,
    selection,
)

Outcomes = Mapping[Question, Outcome]


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
        for name in FIGURES
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
    return min(known, key=lambda pair: sign(name) * pair[0].value)[1]


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
