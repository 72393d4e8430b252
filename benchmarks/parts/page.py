"""docs/speed.md, from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .quality import Quality
from .qualitypage import section
from .rows import Part, Report, Row

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "speed.md"
SPEED = _ROOT / "benchmarks" / "measured" / "speed.json"
GATES = SPEED.with_name("gates.json")

_HEAD = """# Speed

What fusing costs over running the members, what the papers' way of fusing costs, and what the
usual front ends for local models cost: measured in one run of one command on the starter pack.

    python benchmarks/speed.py --save

{machine}.

Every ratio is the median over rounds in which all contestants take turns; only ratios compare
between machines. Generated from [speed.json](../benchmarks/measured/speed.json) by
`python benchmarks/speed.py --page-only`.
"""


def write() -> None:
    """Write the page from what is kept of both commands."""
    report = Report.model_validate_json(SPEED.read_text(encoding="utf-8"))
    quality = None
    if GATES.exists():
        quality = Quality.model_validate_json(GATES.read_text(encoding="utf-8"))
    PAGE.write_text(render(report, quality), encoding="utf-8")


def render(report: Report, quality: Quality | None = None) -> str:
    """The page; what gates cost in quality comes last."""
    lines = [_HEAD.format(machine=machine_line(report.machine)), "## Targets", ""]
    lines += _table(report.targets)
    for part in report.parts.values():
        lines += ["", *_part(part)]
    if quality:
        lines += ["", *section(quality, machine_line(quality.machine))]
    return "\n".join(lines) + "\n"


def machine_line(found: Mapping[str, str | int]) -> str:
    """The machine in a few words."""
    gpu = "no GPU" if found["gpu"] == "none" else str(found["gpu"])
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    return (
        f"{found['cpu']}, {found['cores']} cores, {threads}, {gpu}; "
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
