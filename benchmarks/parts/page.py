"""docs/speed.md, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .rows import Part, Report, Row

_HEAD = """# Speed

What fusing costs over running the members, what the papers' way of fusing costs, and what the
usual front ends for local models cost: measured in one run of one command on the starter pack.

    python benchmarks/speed.py --save

{machine}.

Every ratio is the median over rounds in which all contestants take turns; only ratios compare
between machines. Generated from [speed.json](../benchmarks/measured/speed.json) by
`python benchmarks/speed.py --page-only`.
"""


def render(report: Report) -> str:
    """The page."""
    lines = [_HEAD.format(machine=machine_line(report)), "## Targets", ""]
    lines += _table(report.targets)
    for part in report.parts.values():
        lines += ["", *_part(part)]
    return "\n".join(lines) + "\n"


def machine_line(report: Report) -> str:
    """The machine in a few words."""
    found = report.machine
    gpu = "no GPU" if found["gpu"] == "none" else str(found["gpu"])
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {gpu}; "
        f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}"
    )


def _part(part: Part) -> Iterator[str]:
    yield from (f"## {part.title}", "", part.about, "")
    yield from _table(part.rows)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| what | against | ours | other | ratio | target | |"
    yield "|---|---|---:|---:|---:|---|---|"
    for row in rows:
        yield f"| {' | '.join(map(_plain, cells(row)))} |"


def _plain(cell: str) -> str:
    """One line, without what would end a cell."""
    return " ".join(cell.split()).replace("|", r"\|")


def cells(row: Row) -> tuple[str, ...]:
    """What, against, ours, other, ratio, target, and what else there is to say."""
    target = str(row.target or "")
    if row.ratio is None:
        return row.what, row.against, "", "", "", target, f"not measured: {row.skipped}"
    verdict = {True: "met", False: "**missed**", None: ""}[row.met]
    said = "; ".join(filter(None, (verdict, row.note)))
    return (
        row.what,
        row.against,
        _amount(row.ours, row.unit),
        _amount(row.other, row.unit),
        f"{row.ratio:.3f}" if row.ratio < 10 else f"{row.ratio:.1f}",
        target,
        said,
    )


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"
