"""Members reading in turn and at the same time (`parallel=`), and what that does to drafts.

    python benchmarks/lanes.py [--steps 16] [--tokens 128]

The starter pack on processors: passes of both members, and whole answers with and without drafts.
Threads that compute stay for the whole process, so the drafter is timed before any member has read
in a thread of its own, and again after. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

import torch
from common import machine
from parts.clock import exactly, interleave, seconds
from parts.texts import prose
from rich.console import Console
from rich.table import Table

from packfuse import Answer, Pack
from packfuse.models.hf_member import HFMember
from packfuse.models.int8 import int8_copy
from packfuse.models.member import Read, Session
from packfuse.models.threads import device_groups, run_parallel

_CONTEXT = 128
_PASSES = (1, 2, 3, 5, 9, 17)
_ROUNDS = 3
_WAYS: dict[str, dict[str, Any]] = {
    "every token": {},
    "draft='auto'": {"draft": "auto"},
    "gate='safe', draft='reference'": {"gate": "safe", "draft": "reference"},
    "batch of 8": {},
}


@torch.no_grad()
def read(member: HFMember, session: Session, count: int) -> None:
    """Read any `count` tokens."""
    member.read([Read(session, [400 + i for i in range(count)])])


def opened(member: HFMember) -> Session:
    """A row that has read a context."""
    session = member.open()
    read(member, session, _CONTEXT)
    return session


def passes(members: list[HFMember], count: int, steps: int) -> tuple[float, float]:
    """Milliseconds of a pass over `count` tokens by all members, in turn and at the same time."""
    rows = [opened(member) for member in members]
    tasks = [partial(read, m, row, count) for m, row in zip(members, rows, strict=True)]

    def in_turn() -> None:
        for task in tasks:
            task()

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps):
        times[0].append(1000 * seconds(in_turn))
        times[1].append(1000 * seconds(partial(run_parallel, tasks)))
    return statistics.median(times[0]), statistics.median(times[1])


def draft(member: HFMember, steps: int) -> float:
    """Milliseconds of a step of the 8-bit drafter."""
    copy = int8_copy(member)
    row = opened(copy)
    return 1000 * statistics.median(seconds(partial(read, copy, row, 1)) for _ in range(steps))


def answers(way: str, tokens: int) -> tuple[float, float, int]:
    """Seconds of decoding, in turn and at the same time, and how many answers are the same."""
    packs = {
        parallel: Pack.starter(
            progress=False, reference="SmolLM2-135M-Instruct", prefix_cache=0, parallel=parallel
        )
        for parallel in (False, True)
    }
    texts = prose_of(packs[False], _ROUNDS * (rows := 8 if way.startswith("batch") else 1))
    found: dict[tuple[bool, int], list[Answer]] = {}

    def run(parallel: bool, number: int) -> float:
        prompts = texts[number * rows : (number + 1) * rows]
        found[parallel, number] = packs[parallel].generate(prompts, **exactly(tokens), **_WAYS[way])
        return found[parallel, number][0].record.timings.decode_seconds

    times = interleave({str(p): partial(run, p) for p in packs}, _ROUNDS)
    same = sum(
        one.token_ids == other.token_ids
        for number in range(_ROUNDS)
        for one, other in zip(found[False, number], found[True, number], strict=True)
    )
    return statistics.median(times["False"]), statistics.median(times["True"]), same


def prose_of(pack: Pack, count: int) -> list[str]:
    """So many different texts."""
    return [prose(pack.members[0].vocabulary, _CONTEXT, number) for number in range(count)]


def main() -> None:
    """Measure in one process and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
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
    whole = {way: answers(way, options.tokens) for way in _WAYS}
    table = Table("answers", "in turn, s", "at the same time, s", "ratio", "the same answer")
    for way, (turn, same, equal) in whole.items():
        many = _ROUNDS * (8 if way.startswith("batch") else 1)
        ratio = f"{same / turn:.2f}"
        table.add_row(way, f"{turn:.1f}", f"{same:.1f}", ratio, f"{equal} of {many}")
    console.print(table)
    console.print(f"a step of the drafter: {before:.1f} ms before, {after:.1f} ms after")
    result = {
        "machine": machine(),
        "lanes": len(device_groups(members, range(len(members)))),
        "ratios": {str(count): same / turn for count, (turn, same) in found.items()},
        "answers": {way: same / turn for way, (turn, same, _) in whole.items()},
        "drafter": after / before,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
