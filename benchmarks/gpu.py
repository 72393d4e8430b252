"""A pack on a GPU: its steps, batches, first token and memory over those of its members alone.

    python benchmarks/gpu.py [--parts PART,...] [--seconds N] [--tokenizers FOLDER FOLDER] [--save]

Two models of 8B with random weights in bfloat16 (shapes of Llama-3.1-8B and Qwen3-8B) are made on
the device, and tokenizers are trained on the texts of this Python's own library, so nothing is
downloaded. The tokens of every answer are forced to be English prose, so that the members advance
as they do on real text. It ends after `--seconds` (450) with what it has found by then, however
long a part takes; a part that fails is reported, and the others run. Every part prints its rows
when it is done, then come the targets, and the last line of the output is one JSON document.
`--small` runs tiny models anywhere, to see that the command works.

    answers    tiny models in float32: the answers of captured steps are those of eager ones
    members    one row at context 512: eager, as a CUDA graph over a `StaticCache`
    pack       one row: a step with the defaults, memory, time until the first fast token
    batch      8, 32 and 64 rows, over CUDA graphs of the members' batched steps
    first      the first token at contexts 512, 2,048 and 8,192 with `exact` weights
    drafts     `draft="lookup"` and `"reference"` over a step without drafts
    counts     launches and waits a token, by torch's profiler
    compile    the members alone, compiled by transformers (minutes)
    compiled   a step with `compiled=True` (minutes)
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from common import MEASURED, machine
from parts.gpu_answers import answers
from parts.gpu_bench import Bench
from parts.gpu_counts import calls, memory
from parts.rows import Part, Report, Row, Target, compare

COMPILED = "members, compiled by transformers"
GRAPHS = "members, CUDA graphs"
EAGER = "members, eager"
STEP, COMPILED_STEP = "a step of the pack, one row", "a step of the pack, compiled=True"
TARGETS = {
    (STEP, COMPILED): 1.25,
    (STEP, GRAPHS): 1.10,
    (COMPILED_STEP, COMPILED): 1.10,
}


def against(bench: Bench, *steps: str, floors: tuple[str, ...] = ()) -> Iterator[Row]:
    """Steps of the pack over the members' own, as far as both were measured."""
    for what in steps:
        for name in floors or tuple(bench.floors):
            if what in bench.steps and name in bench.floors:
                ours, other = [bench.steps[what]], [bench.floors[name]]
                yield compare(what, name, ours, other, target=_target(what, name))


def _target(what: str, name: str) -> Target | None:
    value = TARGETS.get((what, name))
    return None if value is None else Target(value=value)


def members(bench: Bench) -> Iterator[Row]:
    """The members alone."""
    for name, measure in ((EAGER, bench.members_step), (GRAPHS, lambda: bench.graph(1))):
        bench.floors[name] = measure()
        yield Row(what=f"a step of both {name}", ours=bench.floors[name])


def pack_step(bench: Bench) -> Iterator[Row]:
    """One row of the pack with the defaults."""
    eager = bench.pack(steps="eager")
    usual = [bench.fused(eager, bench.context, 4).timing for _ in range(2)][-1]
    del eager
    started = time.perf_counter()
    pack = bench.pack()
    times = bench.fused(pack, bench.context, 16).times
    # The first gap after which no step takes twice the usual time.
    gaps = [after - before for before, after in pairwise(times)]
    slow = max((n for n, gap in enumerate(gaps) if gap > 2 * statistics.median(gaps)), default=0)
    fast = times[slow + 1] - started - usual.first
    bench.steps[STEP] = bench.step(lambda: bench.fused(pack, bench.context, bench.tokens))
    yield from against(bench, STEP)
    eagerly = json.dumps(pack.runtime.eager_members)
    yield compare(
        STEP, "steps='eager'", [bench.steps[STEP]], [usual.step],
        note=f"members that decode eagerly: {eagerly}",
    )  # fmt: skip
    yield compare(
        "from loaded models to the first fast token", "the budget of 5 s", [max(fast, 0.0)], [5.0],
        target=Target(value=1.0),
    )  # fmt: skip
    yield from memory(bench, pack)


def counts(bench: Bench) -> Iterator[Row]:
    """What one row of the pack launches, and how often the host waits."""
    pack = bench.pack()
    bench.fused(pack, bench.context, bench.tokens)
    yield from calls(bench, pack)


def batches(bench: Bench) -> Iterator[Row]:
    """Many rows at once: the median of the steps in which all of them run."""
    pack = bench.pack()
    for count in (2,) if bench.small else (8, 32, 64):
        what = f"a step of {count} rows"
        bench.batch(pack, count)
        step = bench.batch(pack, count)
        if step is None:
            yield Row(what=what, skipped="the rows never ran all together")
            continue
        yield compare(
            what, GRAPHS, [step], [bench.graph(count)], target=Target(value=1.25),
            note=f"{count / step:.0f} tokens/s",
        )  # fmt: skip


def first_tokens(bench: Bench) -> Iterator[Row]:
    """The first token, weights fitted to the prompt."""
    pack = bench.pack(weighting="exact")
    for context in (48,) if bench.small else (512, 2048, 8192):
        bench.fused(pack, context, 3)
        ours = min(bench.fused(pack, context, 3).timing.first for _ in range(2))
        floor = 0.0
        for k in range(2):
            bench.alone(k, context, 3)
            floor += min(bench.alone(k, context, 3).timing.first for _ in range(2))
        target = Target(value=1.3) if context > 512 else None
        what = f"first token, context {context:,}, `exact` weights"
        yield compare(what, "members' own, eager", [ours], [floor], target=target)


def drafts(bench: Bench) -> Iterator[Row]:
    """Time a token with drafts; the prose repeats itself, so lookup finds most of it."""

    def each(**settings: str) -> float:
        pack = bench.pack(**settings)
        bench.drafted(pack, bench.context, bench.tokens)
        times = bench.drafted(pack, bench.context, bench.tokens).times
        return (times[-1] - times[1]) / (bench.tokens - 1)

    usual = each()
    for draft in ("lookup", "reference"):
        yield compare(f"a token, draft='{draft}'", "without drafts", [each(draft=draft)], [usual])


def compiled_members(bench: Bench) -> Iterator[Row]:
    """The members alone, compiled by transformers."""
    bench.floors[COMPILED] = bench.members_step(cache_implementation="static")
    yield Row(what=f"a step of both {COMPILED}", ours=bench.floors[COMPILED])
    yield from against(bench, STEP, COMPILED_STEP, floors=(COMPILED,))


def compiled_pack(bench: Bench) -> Iterator[Row]:
    """One row of the pack with `compiled=True`."""
    pack = bench.pack(compiled=True)
    step = bench.step(lambda: bench.fused(pack, bench.context, bench.tokens))
    bench.steps[COMPILED_STEP] = step
    yield from against(bench, COMPILED_STEP)


RUN: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "answers": answers,
    "members": members,
    "pack": pack_step,
    "batch": batches,
    "first": first_tokens,
    "drafts": drafts,
    "counts": counts,
    "compile": compiled_members,
    "compiled": compiled_pack,
}
PARTS = tuple(RUN)


class Run:
    """The parts of one run, and what they have found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Nothing has been measured yet."""
        self._started, self._ending = time.perf_counter(), threading.Lock()
        self._file = MEASURED / "gpu.json" if options.save and not options.small else None
        self._left = list(options.parts.split(","))
        self._report = Report(machine=machine(), options=vars(options), parts={})
        self._failed = False

    def run(self, bench: Bench) -> None:
        """Run all parts; one that fails leaves the others."""
        while self._left:
            name, begun = self._left[0], time.perf_counter()
            part = Part(title=name, about=(RUN[name].__doc__ or "").strip(), rows=[])
            self._report.parts[name] = part
            self._say(name)
            try:
                for row in RUN[name](bench):
                    self._add(part, row)
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                first_line = f"{type(error).__name__}: {error}".split("\n")[0]
                self._failed = True
                self._add(part, Row(what=name, skipped=f"failed: {first_line}"))
            part.seconds = time.perf_counter() - begun
            self._left.remove(name)
            # Packs of the part, with their threads and caches.
            gc.collect()

    def _add(self, part: Part, row: Row) -> None:
        with self._ending:
            part.rows.append(row)
            self._failed |= part.title == "answers" and row.met is False
            self._report.seconds = time.perf_counter() - self._started
            if self._file:
                text = self._report.model_dump_json(indent=1) + "\n"
                self._file.write_text(text, encoding="utf-8")
        self._say("  ", json.dumps(row.model_dump(exclude_none=True, exclude={"ratios"})))

    def end(self) -> int:
        """Print the targets and the document; the exit status. Once, in one of two threads."""
        self._ending.acquire()
        for name in self._left:
            part = self._report.parts.setdefault(name, Part(title=name, about="", rows=[]))
            part.rows.append(Row(what=name, skipped="out of time"))
        self._say(f"targets, on {self._report.machine['gpu']}")
        for row in (row for part in self._report.parts.values() for row in part.rows):
            if row.skipped:
                self._say(f"  OPEN  {row.what}: {row.skipped}")
            elif row.target is not None and row.ratio is not None:
                state = "PASS" if row.met else "MISS"
                self._say(f"  {state}  {row.ratio:.3f}, {row.target}: {row.what} / {row.against}")
        print(self._report.model_dump_json(), flush=True)
        return int(self._failed)

    def _say(self, *what: object) -> None:
        at = f"[{time.perf_counter() - self._started:6.1f} s]"
        print(at, *what, file=sys.stderr, flush=True)

    def give_up(self) -> None:
        """End the process with what has been found; what runs cannot be interrupted otherwise."""
        status = self.end()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=450, help="the run ends after that long")
    parser.add_argument("--tokenizers", nargs=2, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    torch.manual_seed(0)
    run = Run(options)
    timer = threading.Timer(options.seconds, run.give_up)
    timer.daemon = True
    timer.start()
    run.run(Bench(options))
    timer.cancel()
    return run.end()


if __name__ == "__main__":
    sys.exit(main())
