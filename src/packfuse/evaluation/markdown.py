"""An evaluation as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packfuse.evaluation.intervals import Figure
from packfuse.evaluation.report import Evaluation, ReportRow


def document(found: Sequence[Evaluation]) -> str:
    """A page with one section an evaluation."""
    return "\n".join(section(one) for one in found)


def section(found: Evaluation, rows: Iterable[ReportRow] | None = None, level: int = 2) -> str:
    """A heading, what was asked, the verdict in a sentence, and the table.

    Args:
        found: The evaluation.
        rows: Which systems to show; all by default.
        level: Of the heading.
    """
    task = ", ".join(f"{name} {value}" for name, value in found.task.items() if name != "name")
    facts = [
        f"{found.questions} questions (seed {found.seed}, {len(found.skipped)} lines skipped"
        + (f", {len(found.unread)} unread" if found.unread else "")
        + f"), task `{found.task['name']}`"
        + (f" ({task})" if task else "")
        + ". Intervals: 95 %, paired bootstrap over questions."
    ]
    facts += [sentence for name in found.best if (sentence := verdict(found, name))]
    facts += [f"**{row.label} stopped: {row.failed}**" for row in found.rows if row.failed]
    head = f"{'#' * level} {found.source.rpartition('/')[2]}\n"
    return "\n".join([head, *(f"{fact}  " for fact in facts), "", table(found, rows), ""])


def verdict(found: Evaluation, name: str) -> str:
    """Whether the best setting beats the best member, whichever way it comes out."""
    known = [(figure, row) for row in found.packs if (figure := getattr(row, name))]
    if not known:
        return ""
    less = name == "bits_per_byte"
    figure, row = min(known, key=lambda pair: pair[0].value if less else -pair[0].value)
    member = found.row(found.best[name])
    against = getattr(row.against, name)
    its = getattr(member, name)
    certain = against is not None and against.excludes_zero
    return (
        f"{_title(found, name).capitalize()}: best setting {row.label}, {_number(name, figure)}; "
        f"best member {member.label}, {_number(name, its)}; difference "
        f"{_signed(name, against) if against else '0'} "
        f"({'the interval excludes zero' if certain else 'the interval includes zero'})."
    )


def table(found: Evaluation, rows: Iterable[ReportRow] | None = None) -> str:
    """One row a system, members first."""
    shown = list(found.rows if rows is None else rows)
    names = [
        name
        for name in ("accuracy", "raw", "bits_per_byte")
        if any(getattr(row, name) for row in shown)
    ]
    heads = ["system"]
    for name in names:
        heads += [_title(found, name), "minus best member"]
    heads += ["weights", "tokens/s"]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    for row in shown:
        cells = [f"**{row.label}**" if row.member else row.label]
        for name in names:
            figure, against = getattr(row, name), getattr(row.against, name)
            cells.append(_with_interval(name, figure) if figure else "")
            cells.append(_signed(name, against) if against else "")
        shares = [f"{share:.2f}" for share in row.weights.values()]
        cells += ["" if row.member else " / ".join(shares), f"{row.tokens_per_second:.0f}"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _title(found: Evaluation, name: str) -> str:
    raw = "letter likelihood" if found.task["name"] == "letter" else f"{found.verdict}, raw"
    return {"accuracy": found.verdict, "raw": raw, "bits_per_byte": "bits/byte"}[name]


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
