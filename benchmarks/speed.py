"""How fast packs are: against their members alone, the papers' way, and the usual front ends.

    python benchmarks/speed.py [--only PART] [--small] [--full] [--rounds 3] [--save]

All contestants of a comparison run in turn in one process, on the starter pack with two threads,
greedy; about twenty minutes on two cores. The last line of the output is one JSON document.
`--save` keeps it in benchmarks/measured and writes the tables of docs/speed.md; use it on a machine
without other load. `--experimental` adds packs with `parallel=True` and `compiled=True`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

import tables
import torch
from common import MEASURED, machine
from parts import decoding, drafting, fitting, incumbents, published, reuse, starting
from parts.bench import Bench
from parts.rows import Part, Report, Row

SPEED = MEASURED / "speed.json"
PARTS: dict[str, Callable[[Bench], Part]] = {
    "decoding": decoding.measure,
    "drafting": drafting.measure,
    "reuse": reuse.measure,
    "fitting": fitting.measure,
    "published": published.measure,
    "incumbents": incumbents.measure,
    "starting": starting.measure,
}
SMALL = Bench(
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
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check that it runs")
    parser.add_argument("--full", action="store_true", help="the largest batches as well")
    parser.add_argument("--experimental", action="store_true", help="see above")
    parser.add_argument("--rounds", type=int, help="how often contestants take turns")
    parser.add_argument("--reference", help="name of the reference member")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the results, write the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.small and options.save:
        parser.error("--small measures nothing worth keeping: leave out --save")
    if options.save and options.only and SPEED.exists() and kept().machine != machine():
        parser.error(f"{SPEED.name} holds figures of another machine: measure all parts")
    return options


def bench_of(options: argparse.Namespace) -> Bench:
    """The options as the parts take them."""
    given = {
        "rounds": options.rounds,
        "reference": options.reference,
        "largest": 2**31 if options.full else None,
        "experimental": options.experimental or None,
    }
    known = {name: value for name, value in given.items() if value is not None}
    return replace(SMALL if options.small else Bench(), **known)


def measure(options: argparse.Namespace) -> tuple[Report, bool]:
    """Run the parts; the report, and whether no part failed."""
    bench, started, well = bench_of(options), time.perf_counter(), True
    report = Report(machine=machine(), options=vars(options), parts={})
    for name in options.only or PARTS:
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr)
        begun = time.perf_counter()
        try:
            part = PARTS[name](bench)
        except Exception as error:
            # The results of the other parts took minutes and are kept.
            traceback.print_exc(file=sys.stderr)
            row = Row(what=name, skipped=f"failed: {error}")
            part, well = Part(title=name, about="", rows=[row]), False
        part.seconds = time.perf_counter() - begun
        report.parts[name] = part
    report.seconds = time.perf_counter() - started
    return report, well


def show(report: Report) -> None:
    """Print the comparisons with their targets."""
    print(tables.machine_line(report.machine))
    for part in report.parts.values():
        rows = [(*tables.cells(row.model_dump()), *_verdict(row)) for row in part.rows]
        head = ("", "compared with", "ours ", "other ", "ratio ", "target", "")
        print(f"\n{part.title} ({part.seconds:.0f} s). {part.about}\n")
        print(tables.markdown([head, *rows]))


def _verdict(row: Row) -> tuple[str, str]:
    """The target, and whether it is met."""
    if row.ratio is None:
        return str(row.target or ""), f"not measured: {row.skipped}"
    met = {True: "met", False: "MISSED", None: ""}[row.met]
    return str(row.target or ""), "; ".join(filter(None, (met, row.note)))


def kept() -> Report:
    """The results that were kept last."""
    return Report.model_validate(json.loads(SPEED.read_text(encoding="utf-8")))


def save(report: Report) -> Report:
    """Keep the results beside those of parts that were measured on the same machine before."""
    if SPEED.exists() and (before := kept()).machine == report.machine:
        parts = {**before.parts, **report.parts}
        ordered = {name: parts[name] for name in PARTS if name in parts}
        report = report.model_copy(update={"parts": ordered})
    SPEED.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return report


def main() -> int:
    """Measure, print, keep."""
    options = arguments()
    torch.manual_seed(0)
    report, well = measure(options)
    show(report)
    if options.save:
        report = save(report)
        tables.main()
    print(report.model_dump_json())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
