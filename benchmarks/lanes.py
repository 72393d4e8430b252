"""Members reading in turn and at the same time (`parallel=`), and what that does to drafts.

    python benchmarks/lanes.py [--steps 16]

The starter pack on processors. Threads that compute stay for the whole process, so drafts are
timed before any member has read in a thread of its own, and again after. The last line of the
output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial

import torch
from common import machine
from parts.clock import seconds
from rich.console import Console
from rich.table import Table

from packfuse import Pack
from packfuse.lanes import lanes, side_by_side
from packfuse.local import LocalMember
from packfuse.member import Read, Session
from packfuse.quantized import quantized

_CONTEXT = 128
_PASSES = (1, 2, 5, 9, 17)


@torch.no_grad()
def read(member: LocalMember, session: Session, count: int) -> None:
    """Read any `count` tokens."""
    member.read([Read(session, [400 + i for i in range(count)])])


def opened(member: LocalMember) -> Session:
    """A row that has read a context."""
    session = member.open()
    read(member, session, _CONTEXT)
    return session


def passes(members: list[LocalMember], count: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a pass over `count` tokens by all members, in turn and at the same time."""
    rows = [opened(member) for member in members]
    tasks = [partial(read, m, row, count) for m, row in zip(members, rows, strict=True)]

    def in_turn() -> None:
        for task in tasks:
            task()

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps):
        times[0].append(1000 * seconds(in_turn))
        times[1].append(1000 * seconds(partial(side_by_side, tasks)))
    return statistics.median(times[0]), statistics.median(times[1])


def draft(member: LocalMember, steps: int) -> float:
    """Milliseconds of a step of the 8-bit drafter."""
    copy = quantized(member)
    row = opened(copy)
    return 1000 * statistics.median(seconds(partial(read, copy, row, 1)) for _ in range(steps))


def main() -> None:
    """Measure in one process and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    members = Pack.starter(progress=False).members
    before = draft(members[0], options.steps)
    found = {count: passes(members, count, options.steps) for count in _PASSES}
    after = draft(members[0], options.steps)
    table = Table("tokens in a pass", "in turn, ms", "at the same time, ms", "ratio")
    for count, (turn, same) in found.items():
        table.add_row(str(count), f"{turn:.0f}", f"{same:.0f}", f"{same / turn:.2f}")
    console = Console()
    console.print(table)
    console.print(f"a step of the drafter: {before:.1f} ms before, {after:.1f} ms after")
    result = {
        "machine": machine(),
        "lanes": len(lanes(members, range(len(members)))),
        "ratios": {str(count): same / turn for count, (turn, same) in found.items()},
        "drafter": after / before,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
