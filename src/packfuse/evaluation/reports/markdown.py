"""The results of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packfuse.evaluation.reports.intervals import Figure, signed, with_interval
from packfuse.evaluation.reports.report import Evaluation, ReportRow
from packfuse.view.tables import Cell, Strong


def document(evaluations: Sequence[Evaluation]) -> str:
    """A page with one section per evaluation."""
    return "\n".join(section(evaluation) for evaluation in evaluations)


def section(evaluation: Evaluation, rows: Iterable[ReportRow] | None = None, level: int = 2) -> str:
    """A heading, the questions and the task, the comparison in a sentence, and the table.

    Args:
        evaluation: The results.
        rows: Rows to show; all by default.
        level: Level of the heading.
    """
    task = ", ".join(f"{name} {value}" for name, value in evaluation.task.items() if name != "name")
    facts = [
        f"{evaluation.questions} questions (seed {evaluation.seed}, "
        f"{len(evaluation.skipped)} lines skipped"
        + (f", {len(evaluation.broken)} broken" if evaluation.broken else "")
        + (f", {len(evaluation.unread)} unread" if evaluation.unread else "")
        + f"), task `{evaluation.task['name']}`"
        + (f" ({task})" if task else "")
        + ". Intervals: 95 %, paired bootstrap over questions."
    ]
    facts += [sentence for name in evaluation.best if (sentence := comparison(evaluation, name))]
    facts += beyond(evaluation)
    facts += [f"Broken line: {error}" for error in evaluation.broken]
    facts += [f"**{row.label} stopped: {row.failed}**" for row in evaluation.rows if row.failed]
    head = f"{'#' * level} {evaluation.source.rpartition('/')[2]}\n"
    return "\n".join([head, *(f"{fact}  " for fact in facts), "", table(evaluation, rows), ""])


def comparison(evaluation: Evaluation, name: str) -> str:
    """The best setting against the best member in one sentence; empty without a setting."""
    known = [(figure, row) for row in evaluation.packs if (figure := getattr(row, name))]
    if not known:
        return ""
    less = name == "bits_per_byte"
    figure, row = min(known, key=lambda pair: pair[0].value if less else -pair[0].value)
    member = evaluation.row(evaluation.best[name])
    gap = getattr(row.against, name)
    certain = gap is not None and gap.excludes_zero
    return (
        f"{evaluation.title(name).capitalize()}: best setting {row.label}, "
        f"{_number(name, figure)}; best member {member.label}, "
        f"{_number(name, getattr(member, name))}; difference "
        f"{_difference(gap, bits=less) if gap else '0'} "
        f"({'the interval excludes zero' if certain else 'the interval includes zero'})."
    )


def beyond(evaluation: Evaluation) -> list[str]:
    """What no choice among the members' answers could reach, and what it would take to be sure."""
    found, selection = [], evaluation.selection
    row = max(evaluation.packs, key=_accuracy, default=None)
    if selection is not None:
        sentence = (
            f"No member is right on {with_interval(selection.beta, bits=False)} of the questions "
            f"(β); an oracle that chose among their answers would have "
            f"{selection.oracle.value:.1%}"
        )
        if row is not None and row.only is not None:
            sentence += f"; only {row.label} is right on {with_interval(row.only, bits=False)}"
        found.append(sentence + ".")
    if row is None:
        return found
    sampled, gap = evaluation.sampled, row.against.samples
    if sampled is not None and gap is not None:
        found.append(
            f"{row.label} minus {sampled.label}: {_difference(gap, bits=False)}, at "
            f"{row.seconds:.2f} against {sampled.seconds:.2f} s and {row.member_tokens:.0f} "
            f"against {sampled.member_tokens:.0f} member tokens an answer."
        )
    if row.against.needed is not None:
        found.append(
            "By the spread of these answers, a difference of one point to the best member takes "
            f"{row.against.needed:,} questions to show (interval of 95 %, in 80 % of cases)."
        )
    return found


def _accuracy(row: ReportRow) -> float:
    return row.accuracy.value if row.accuracy else -1.0


def table(evaluation: Evaluation, rows: Iterable[ReportRow] | None = None) -> str:
    """One row per system, members first."""
    heads, cells = evaluation.table(rows)
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    return "\n".join([*lines, *(_line(map(_cell, row)) for row in cells)])


def _difference(gap: Figure, *, bits: bool) -> str:
    return f"**{signed(gap, bits=bits)}**" if gap.excludes_zero else signed(gap, bits=bits)


def _cell(cell: Cell) -> str:
    return f"**{cell.text}**" if isinstance(cell, Strong) else str(cell)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(name: str, figure: Figure) -> str:
    return f"{figure.value:.4f}" if name == "bits_per_byte" else f"{figure.value:.1%}"
