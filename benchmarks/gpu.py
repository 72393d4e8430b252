"""A pack on a GPU: its steps, batches, first token and memory over those of its members alone.

    python benchmarks/gpu.py [--parts PART,...] [--tokenizers FOLDER FOLDER] [--small] [--save]

Two models of 8B with random weights in bfloat16 (shapes of Llama-3.1-8B and Qwen3-8B) are made on
the device, and tokenizers are trained on the texts of this Python's own library, so nothing is
downloaded. The tokens of every answer are forced to be English prose, so that the members advance
as they do on real text. About seven minutes on an H100; the last line of the output is one JSON
document. `--small` runs tiny models anywhere, to see that the command works.

    members    one row at context 512: eager, as a CUDA graph over a `StaticCache`
    compile    the same, compiled by transformers (`cache_implementation="static"`; minutes)
    pack       one row: a step with the defaults, launches and waits a token, memory, time until
               the first fast token
    batch      8, 32 and 64 rows, over CUDA graphs of the members' batched steps
    first      the first token at contexts 512, 2,048 and 8,192 with `exact` weights
    drafts     `draft="lookup"` and `"reference"` over a step without drafts
    compiled   a step with `compiled=True` (minutes; only if named)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from itertools import pairwise

import torch
from common import MEASURED, machine
from parts.gpu_bench import Bench
from parts.rows import Part, Report, Row, Target, compare

from packfuse import Pack

PARTS = ("members", "compile", "pack", "batch", "first", "drafts", "compiled")
CALLS = ("cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


def against(bench: Bench, what: str, step: float, target: float | None) -> list[Row]:
    """A step of the pack over every floor of one row that was measured."""
    bounds = {"compiled by transformers": target, "CUDA graphs": 1.10}
    return [
        compare(what, f"members, {name}", [step], [floor], target=_target(bounds.get(name)))
        for name, floor in bench.floors.items()
    ]


def _target(value: float | None) -> Target | None:
    return None if value is None else Target(value=value)


def members(bench: Bench) -> list[Row]:
    """The members alone."""
    bench.floors["eager"] = bench.members_step()
    bench.floors["CUDA graphs"] = bench.graph(1)
    rows = bench.floors.items()
    return [Row(what=f"a step of both members, {name}", ours=value) for name, value in rows]


def compiled_members(bench: Bench) -> list[Row]:
    """The members alone, compiled by transformers."""
    value = bench.members_step(cache_implementation="static")
    bench.floors["compiled by transformers"] = value
    return [Row(what="a step of both members, compiled by transformers", ours=value)]


def pack_step(bench: Bench) -> list[Row]:
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
    step = bench.step(lambda: bench.fused(pack, bench.context, bench.tokens))
    rows = against(bench, "a step of the pack, one row", step, 1.25)
    rows.append(compare("a step of the pack", "steps='eager'", [step], [usual.step]))
    rows.append(compare(
        "from loaded models to the first fast token", "the budget of 5 s", [max(fast, 0.0)], [5.0],
        target=Target(value=1.0),
    ))  # fmt: skip
    return [*rows, *calls(bench, pack), *memory(bench)]


def calls(bench: Bench, pack: Pack) -> list[Row]:
    """Launches and waits of the host a token."""
    if bench.device.type != "cuda":
        return [Row(what="waits of the host a token", skipped="no CUDA device")]
    from torch.profiler import ProfilerActivity, profile

    counts = dict.fromkeys((*CALLS, *WAITS), 0.0)
    # What an answer does besides its steps is in both runs.
    for tokens, sign in ((bench.tokens, 1), (4, -1)):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            bench.fused(pack, bench.context, tokens)
        for row in seen.key_averages():
            for name in counts:
                counts[name] += sign * row.count * (row.key == name) / (bench.tokens - 4)
    waits = sum(counts[name] for name in WAITS)
    launches = sum(counts[name] for name in CALLS)
    return [
        compare("waits of the host a token", "the target", [waits], [2.0], unit="waits",
                target=Target(value=1.0)),
        Row(what="launches a token", ours=launches, unit="launches", note=json.dumps(counts)),
    ]  # fmt: skip


def memory(bench: Bench) -> list[Row]:
    """Peak memory of an answer beyond weights and KV caches."""
    if bench.device.type != "cuda":
        return [Row(what="device memory beyond weights and caches", skipped="no CUDA device")]
    weights = sum(p.nbytes for model in bench.models for p in model.parameters())
    pack = bench.pack()
    torch.cuda.reset_peak_memory_stats()
    bench.fused(pack, bench.context, bench.tokens)
    stores = [store for member in pack.members for store in member._stores.stores]  # type: ignore[attr-defined]
    caches = sum(t.nbytes for store in stores for pair in store.layers for t in pair or ())
    peak = float(torch.cuda.max_memory_allocated())
    return [
        compare("device memory of an answer", "weights and KV caches", [peak / 2**30],
                [(weights + caches) / 2**30], unit="GiB", target=Target(value=1.05)),
    ]  # fmt: skip


def batches(bench: Bench) -> list[Row]:
    """Many rows at once; what a batch costs besides its steps is subtracted."""
    pack, rows = bench.pack(), []
    few, many = (2, 5) if bench.small else (4, 24)
    for count in (2,) if bench.small else (8, 32, 64):
        bench.batch(pack, count, many)
        step = (bench.batch(pack, count, many) - bench.batch(pack, count, few)) / (many - few)
        floor = bench.graph(count)
        rows.append(compare(
            f"a step of {count} rows", "members, CUDA graphs", [step], [floor],
            target=Target(value=1.25), note=f"{count / step:.0f} tokens/s",
        ))  # fmt: skip
    return rows


def first_tokens(bench: Bench) -> list[Row]:
    """The first token, weights fitted to the prompt."""
    pack, rows = bench.pack(weighting="exact"), []
    for context in (48,) if bench.small else (512, 2048, 8192):
        bench.fused(pack, context, 3)
        ours = min(bench.fused(pack, context, 3).timing.first for _ in range(2))
        floor = 0.0
        for k in range(2):
            bench.alone(k, context, 3)
            floor += min(bench.alone(k, context, 3).timing.first for _ in range(2))
        target = Target(value=1.3) if context > 512 else None
        what = f"first token, context {context:,}, `exact` weights"
        rows.append(compare(what, "members' own, eager", [ours], [floor], target=target))
    return rows


def drafts(bench: Bench) -> list[Row]:
    """Time a token with drafts; the prose repeats itself, so lookup finds most of it."""
    plain = bench.pack()
    bench.fused(plain, bench.context, bench.tokens)

    def each(pack: Pack) -> float:
        bench.fused(pack, bench.context, bench.tokens)
        times = bench.fused(pack, bench.context, bench.tokens).times
        return (times[-1] - times[1]) / (bench.tokens - 1)

    usual, rows = each(plain), []
    for draft in ("lookup", "reference"):
        pack = bench.pack(draft=draft)
        rows.append(compare(f"a token, draft='{draft}'", "without drafts", [each(pack)], [usual]))
    return rows


def compiled_pack(bench: Bench) -> list[Row]:
    """One row of the pack with `compiled=True`."""
    pack = bench.pack(compiled=True)
    step = bench.step(lambda: bench.fused(pack, bench.context, bench.tokens))
    return against(bench, "a step of the pack, compiled=True", step, 1.10)


RUN: dict[str, Callable[[Bench], list[Row]]] = dict(
    zip(
        PARTS,
        (members, compiled_members, pack_step, batches, first_tokens, drafts, compiled_pack),
        strict=True,
    )
)


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS[:-1]))
    parser.add_argument("--tokenizers", nargs=2, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--save", action="store_true", help="keep the results")
    options = parser.parse_args()
    torch.manual_seed(0)
    started, well = time.perf_counter(), True
    bench = Bench(options)
    report = Report(machine=machine(), options=vars(options), parts={})
    for name in options.parts.split(","):
        begun = time.perf_counter()
        try:
            rows = RUN[name](bench)
        except Exception as error:
            # The other parts took minutes, and are kept.
            traceback.print_exc(file=sys.stderr)
            rows, well = [Row(what=name, skipped=f"failed: {error}")], False
        about = (RUN[name].__doc__ or "").strip()
        took = time.perf_counter() - begun
        report.parts[name] = Part(title=name, about=about, rows=rows, seconds=took)
        print(f"[{time.perf_counter() - started:6.1f} s] {name}", file=sys.stderr)
        for row in rows:
            shown = row.model_dump(exclude_none=True, exclude={"ratios"})
            print("  ", json.dumps(shown), file=sys.stderr, flush=True)
    report.seconds = time.perf_counter() - started
    if options.save and not bench.small:
        text = report.model_dump_json(indent=1) + "\n"
        (MEASURED / "gpu.json").write_text(text, encoding="utf-8")
    print(report.model_dump_json())
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
