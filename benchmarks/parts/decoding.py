"""Packs against the floor: the sum of the members' own `generate`, with their caches."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from packfuse import Pack

from .bench import Bench, has_setting
from .clock import Timing, alone, fused, interleave
from .rows import Part, Row, Target, compare

_FLOOR = "sum of the members alone"
_PRUNED = "pruned heads"


def measure(bench: Bench) -> Part:
    """Time to the first token, time per token, and throughput, by context and batch."""
    packs = _packs(bench)
    rows: list[Row] = []
    for context in bench.contexts:
        rates: dict[tuple[str, int], float] = {}
        for batch in bench.batches:
            if batch * context > bench.largest:
                what = f"context {context:,}, batch {batch}"
                rows.append(Row(what=what, skipped="a large batch: --full measures it"))
                continue
            found, cell = _cell(bench, packs, context, batch)
            rates |= {(name, batch): rate for name, rate in found.items()}
            rows += cell
        rows += _throughput(context, rates)
    if _PRUNED not in packs:
        rows.append(
            Row(
                what=f"time per token, {_PRUNED}",
                target=Target(value=0.75),
                skipped="packs have no setting `heads`",
            )
        )
    about = (
        f"Greedy, {bench.tokens} tokens after documentation prose, {bench.rounds} times in turn; "
        f"for batches {bench.rows_tokens} tokens and one round. The members alone run "
        "transformers' own `generate` with a cache, one after the other; the texts of a batch "
        "differ, and are left-padded."
    )
    return Part(title="Against the floor", about=about, rows=rows)


def _packs(bench: Bench) -> dict[str, Pack]:
    """The pack with whole heads, and where packs can prune them, with pruned ones."""
    if not has_setting("heads"):
        return {"": bench.pack}
    return {"": bench.pack, _PRUNED: bench.variant(heads="pruned")}


def _cell(
    bench: Bench, packs: dict[str, Pack], context: int, batch: int
) -> tuple[dict[str, float], list[Row]]:
    """One context and batch: tokens per second by way, and the rows."""
    rounds = bench.rounds if batch == 1 else 1
    prompts = [[bench.prose(context) for _ in range(batch)] for _ in range(rounds)]
    contestants: dict[str, Callable[[int], Timing]] = {
        member.name: partial(_alone, bench, index, prompts)
        for index, member in enumerate(bench.members)
    }
    if batch > 1:
        packs = {name: pack for name, pack in packs.items() if name != _PRUNED}
    for name, pack in packs.items():
        contestants[f"pack {name}"] = partial(_fused, bench, pack, prompts)
    times = interleave(contestants, rounds)
    floor = list(zip(*(times[member.name] for member in bench.members), strict=True))
    rows = []
    for name in packs:
        rows += _rows(context, batch, name, times[f"pack {name}"], floor)
    steps = {name: statistics.median(t.step for t in times[f"pack {name}"]) for name in packs}
    return {name: batch / step for name, step in steps.items()}, rows


def _alone(bench: Bench, index: int, prompts: list[list[str]], number: int) -> Timing:
    return alone(bench.members[index], prompts[number], _tokens(bench, prompts))


def _fused(bench: Bench, pack: Pack, prompts: list[list[str]], number: int) -> Timing:
    return fused(pack, prompts[number], _tokens(bench, prompts))


def _tokens(bench: Bench, prompts: list[list[str]]) -> int:
    return bench.tokens if len(prompts[0]) == 1 else bench.rows_tokens


def _rows(
    context: int,
    batch: int,
    name: str,
    ours: list[Timing],
    floor: list[tuple[Timing, ...]],
) -> list[Row]:
    where = f"context {context:,}, batch {batch}" + (f", {name}" if name else "")
    steps = [1000 * timing.step for timing in ours]
    floors = [1000 * sum(timing.step for timing in row) for row in floor]
    bound = Target(value=0.75 if name == _PRUNED else 1.03) if batch == 1 else None
    return [
        compare(
            f"time to first token, {where}",
            _FLOOR,
            [timing.first for timing in ours],
            [sum(timing.first for timing in row) for row in floor],
        ),
        compare(f"time per token, {where}", _FLOOR, steps, floors, unit="ms", target=bound),
    ]


def _throughput(context: int, rates: dict[tuple[str, int], float]) -> Iterator[Row]:
    """Tokens per second over those of one row."""
    for (name, batch), rate in rates.items():
        if batch > 1 and (name, 1) in rates:
            where = f"context {context:,}, batch {batch}" + (f", {name}" if name else "")
            yield compare(
                f"tokens per second, {where}",
                "batch 1",
                [rate],
                [rates[name, 1]],
                unit="tokens/s",
                target=Target(value=4, least=True) if batch == 8 else None,
            )
