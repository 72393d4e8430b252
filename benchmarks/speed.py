"""How fast packs are: against their members alone, the papers' way, and the usual front ends.

    python benchmarks/speed.py [--only PART] [--quick] [--full] [--rounds 3] [--save]

Everything that is compared runs in turn in one process, on the starter pack with two threads,
greedy; about twenty minutes on two cores. The last line of the output is one JSON document.
`--save` keeps it in benchmarks/measured and writes docs/speed.md from it; run it on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

import torch
from common import machine
from parts import (
    accelerator,
    compiled,
    decoding,
    drafting,
    fitting,
    incumbents,
    published,
    reuse,
    starting,
)
from parts.bench import Bench
from parts.page import SPEED, cells, machine_line, write
from parts.rows import Part, Report, Row
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PARTS: dict[str, Callable[[Bench], Part]] = {
    "decoding": decoding.measure,
    "drafting": drafting.measure,
    "reuse": reuse.measure,
    "fitting": fitting.measure,
    "published": published.measure,
    "incumbents": incumbents.measure,
    "starting": starting.measure,
    "compiled": compiled.measure,
    "accelerator": accelerator.measure,
}
_WIDTH = 160
"""Columns of the table where nobody sees how wide it is."""
QUICK = Bench(
    rounds=1,
    tokens=6,
    rows_tokens=4,
    contexts=(48,),
    batches=(1, 2),
    short=6,
    long=(64, 4),
    answer=12,
    reused=64,
)


def arguments() -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--full", action="store_true", help="the largest batches as well")
    parser.add_argument("--rounds", type=int, help="how often contestants take turns")
    parser.add_argument("--tokens", type=int, help="of most answers")
    parser.add_argument("--context", type=int, action="append", help="of prompts; repeatable")
    parser.add_argument("--batch", type=int, action="append", help="rows; repeatable")
    parser.add_argument("--short", type=int, help="the papers' answer to a short prompt")
    parser.add_argument("--long", type=int, nargs=2, help="the papers' long prompt and its answer")
    parser.add_argument("--answer", type=int, help="of answers that are drafted")
    parser.add_argument("--reused", type=int, help="the context that is read again")
    parser.add_argument("--reference", help="whose tokens are used")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the results and write the page")
    parser.add_argument("--page-only", action="store_true", help="write the page, measure nothing")
    options = parser.parse_args()
    if options.quick and options.save:
        parser.error("--quick measures nothing worth keeping: leave out --save")
    return options


def bench_of(options: argparse.Namespace) -> Bench:
    """The options as the parts take them."""
    names = ("rounds", "tokens", "short", "long", "answer", "reused", "reference")
    given = {name: getattr(options, name) for name in names} | {
        "contexts": options.context,
        "batches": options.batch,
        "largest": 2**31 if options.full else None,
    }
    known = {name: value for name, value in given.items() if value is not None}
    return replace(QUICK if options.quick else Bench(), **known)


def measure(options: argparse.Namespace, log: Console) -> tuple[Report, bool]:
    """Run the parts; a part that fails leaves the reason. Whether all went well comes second."""
    bench, started, well = bench_of(options), time.perf_counter(), True
    report = Report(machine=machine(), options=vars(options), parts={})
    for name in options.only or PARTS:
        log.print(f"{time.strftime('%H:%M:%S')} {name}")
        begun = time.perf_counter()
        try:
            part = PARTS[name](bench)
        except Exception as error:
            # The other parts have taken minutes, too.
            traceback.print_exc(file=sys.stderr)
            row = Row(what=name, skipped=f"failed: {error}")
            part, well = Part(title=name, about="", rows=[row]), False
        part.seconds = time.perf_counter() - begun
        report.parts[name] = part
    report.seconds = time.perf_counter() - started
    return report, well


def show(report: Report, console: Console) -> None:
    """A table for people."""
    table = Table(title=machine_line(report.machine))
    numbers = ("ours", "other", "ratio")
    for column in ("what", "against", *numbers, "target", ""):
        table.add_column(column, justify="right" if column in numbers else "left")
    for part in report.parts.values():
        table.add_section()
        table.add_row(f"[bold]{part.title}[/bold] ({part.seconds:.0f} s)")
        for row in part.rows:
            table.add_row(*map(escape, cells(row)))
    console.print(table)


def save(report: Report) -> Report:
    """Keep the results beside those of parts that were measured on the same machine before."""
    if SPEED.exists() and (kept := json.loads(SPEED.read_text())).get("parts"):
        before = Report.model_validate(kept)
        if before.machine == report.machine:
            parts = {**before.parts, **report.parts}
            ordered = {name: parts[name] for name in PARTS if name in parts}
            report = report.model_copy(update={"parts": ordered})
    SPEED.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return report


def main() -> int:
    """Measure, print, keep."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    well = True
    if options.page_only:
        report = Report.model_validate_json(SPEED.read_text())
    else:
        report, well = measure(options, Console(stderr=True))
        show(report, Console(width=None if sys.stdout.isatty() else _WIDTH))
        if options.save:
            report = save(report)
    if options.save or options.page_only:
        write()
    print(report.model_dump_json())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
