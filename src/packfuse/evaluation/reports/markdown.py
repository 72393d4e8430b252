"""The results of an evaluation as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packfuse.evaluation.reports.intervals import Figure
from packfuse.evaluation.reports.report import Evaluation, ReportRow


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
        f"{_title(evaluation, name).capitalize()}: best setting {row.label}, "
        f"{_number(name, figure)}; best member {member.label}, "
        f"{_number(name, getattr(member, name))}; difference "
        f"{_signed(name, gap) if gap else '0'} "
        f"({'the interval excludes zero' if certain else 'the interval includes zero'})."
    )


def table(evaluation: Evaluation, rows: Iterable[ReportRow] | None = None) -> str:
    """One row per system, members first."""
    shown = list(evaluation.rows if rows is None else rows)
    names = [
        name
        for name in ("accuracy", "raw", "bits_per_byte")
        if any(getattr(row, name) for row in shown)
    ]
    heads = ["system"]
    for name in names:
        heads += [_title(evaluation, name), "minus best member"]
    heads += ["weights", "tokens/s"]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for row in shown:
        cells = [f"**{row.label}**" if row.member else row.label]
        for name in names:
            figure, gap = getattr(row, name), getattr(row.against, name)
            cells.append(_with_interval(name, figure) if figure else "")
            cells.append(_signed(name, gap) if gap else "")
        shares = [f"{share:.2f}" for share in row.weights.values()]
        cells += ["" if row.member else " / ".join(shares), f"{row.tokens_per_second:.0f}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _title(evaluation: Evaluation, name: str) -> str:
    raw = (
        "letter likelihood" if evaluation.task["name"] == "letter" else f"{evaluation.verdict}, raw"
    )
    return {"accuracy": evaluation.verdict, "raw": raw, "bits_per_byte": "bits/byte"}[name]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(name: str, figure: Figure) -> str:
    return f"{figure.value:.4f}" if name == "bits_per_byte" else f"{figure.value:.1%}"


def _with_interval(name: str, figure: Figure) -> str:
    if name == "bits_per_byte":
        return f"{figure.value:.4f} ({figure.low:.3f} to {figure.high:.3f})"
    return f"{figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%})"


def _signed(name: str, figure: Figure) -> str:
    if name == "bits_per_byte":
        shown = f"{figure.value:+.4f} ({figure.low:+.4f} to {figure.high:+.4f})"
    else:
        points = [f"{100 * value:+.1f}" for value in (figure.value, figure.low, figure.high)]
        shown = f"{points[0]} ({points[1]} to {points[2]})"
    return f"**{shown}**" if figure.excludes_zero else shown
