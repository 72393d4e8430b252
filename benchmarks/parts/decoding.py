"""Packs against the floor: the sum of the members' own `generate`, with their KV caches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

from packfuse import Pack
from packfuse.models.hf_member import HFMember

from .bench import Bench
from .clock import Timing, alone, fused, interleave
from .rows import Part, Row, Target, compare

_FLOOR = "sum of the members alone"
_PRUNED = "pruned heads"


def measure(bench: Bench) -> Part:
    """Time to the first token, time per token, and throughput, by context and batch."""
    packs = {"": bench.pack, _PRUNED: bench.variant(heads="pruned")}
    for name in ("parallel", "compiled") if bench.experimental else ():
        packs[f"`{name}=True`"] = bench.variant(**{name: True})
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
    rows.append(_loss(bench, packs))
    about = (
        f"Greedy, {bench.tokens} tokens after documentation prose, {bench.rounds} times in turn; "
        f"for batches {bench.rows_tokens} tokens and one round. The members alone run "
        "transformers' own `generate` with a KV cache, one after the other; the texts of a batch "
        "differ, and are left-padded."
    )
    return Part(title="Against the members alone", about=about, rows=rows)


def _cell(
    bench: Bench, packs: dict[str, Pack], context: int, batch: int
) -> tuple[dict[str, float], list[Row]]:
    """One context and batch: tokens per second by pack, and the rows."""
    rounds = bench.rounds if batch == 1 else 1
    tokens = bench.tokens if batch == 1 else bench.rows_tokens
    prompts = [[bench.prose(context) for _ in range(batch)] for _ in range(rounds)]
    if batch > 1:
        packs = {"": packs[""]}
    contestants: dict[str, Callable[[int], Timing]] = {
        member.name: partial(_alone, member, prompts, tokens) for member in bench.members
    }
    for name, pack in packs.items():
        contestants[f"pack {name}"] = partial(_fused, pack, prompts, tokens)
    times = interleave(contestants, rounds)
    floor = list(zip(*(times[member.name] for member in bench.members), strict=True))
    rows: list[Row] = []
    for name in packs:
        rows += _rows(context, batch, name, times[f"pack {name}"], floor)
    steps = {name: statistics.median(t.step for t in times[f"pack {name}"]) for name in packs}
    return {name: batch / step for name, step in steps.items()}, rows


def _alone(member: HFMember, prompts: list[list[str]], tokens: int, number: int) -> Timing:
    return alone(member, prompts[number], tokens)


def _fused(pack: Pack, prompts: list[list[str]], tokens: int, number: int) -> Timing:
    return fused(pack, prompts[number], tokens)


def _where(context: int, batch: int, name: str) -> str:
    return f"context {context:,}, batch {batch}" + (f", {name}" if name else "")


def _rows(
    context: int, batch: int, name: str, ours: list[Timing], floor: list[tuple[Timing, ...]]
) -> list[Row]:
    where = _where(context, batch, name)
    firsts = [sum(timing.first for timing in row) for row in floor]
    steps = [1000 * timing.step for timing in ours]
    floors = [1000 * sum(timing.step for timing in row) for row in floor]
    bound = Target(value=0.75 if name == _PRUNED else 1.03) if batch == 1 else None
    return [
        compare(f"time to first token, {where}", _FLOOR, [t.first for t in ours], firsts),
        compare(f"time per token, {where}", _FLOOR, steps, floors, unit="ms", target=bound),
    ]


def _throughput(context: int, rates: dict[tuple[str, int], float]) -> Iterator[Row]:
    """Tokens per second over those of one sequence."""
    for (name, batch), rate in rates.items():
        if batch > 1 and (name, 1) in rates:
            what = f"tokens per second, {_where(context, batch, name)}"
            target = Target(value=4, least=True) if batch == 8 else None
            one = [rates[name, 1]]
            yield compare(what, "batch 1", [rate], one, unit="tokens/s", target=target)


def _loss(bench: Bench, packs: dict[str, Pack]) -> Row:
    """What pruned heads cost in quality: bits per byte of new documentation prose."""
    context = min(bench.contexts)
    texts = [bench.prose(2 * context) for _ in range(bench.rounds)]

    def bits(pack: Pack) -> list[float]:
        halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
        return [-pack.score(a, b) / math.log(2) / len(b.encode()) for a, b in halves]

    what = f"loss on prose, {_PRUNED}"
    return compare(what, "whole heads", bits(packs[_PRUNED]), bits(packs[""]), unit="bits/byte")
