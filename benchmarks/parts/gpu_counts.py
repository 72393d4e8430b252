"""What a GPU did for one answer of a pack: launches and waits a token, and memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch

from packfuse import Pack
from packfuse.models.static_member import StaticMember
from parts.gpu_bench import Bench
from parts.rows import Row, Target, compare

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPH = "cudaGraphLaunch"
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
FEW, MANY = 4, 20
"""Tokens of the two answers whose difference is counted."""


def calls(bench: Bench, pack: Pack) -> Iterator[Row]:
    """Launches and waits of the host a token."""
    what = "waits of the host a token"
    if bench.device.type != "cuda":
        yield Row(what=what, skipped="no CUDA device")
        return
    from torch.profiler import ProfilerActivity, profile

    counts = dict.fromkeys((*LAUNCHES, GRAPH, *WAITS), 0.0)
    # What an answer does besides its steps is in both runs.
    for tokens, sign in ((MANY, 1), (FEW, -1)):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            bench.fused(pack, bench.context, tokens)
        for row in seen.key_averages():
            if row.key in counts:
                counts[row.key] += sign * row.count / (MANY - FEW)
    waits = sum(counts[name] for name in WAITS)
    launches = sum(counts[name] for name in (*LAUNCHES, GRAPH))
    if launches <= 0:
        yield Row(what=what, skipped="the profiler saw no launches")
        return
    yield compare(what, "the target", [waits], [2.0], unit="waits", target=Target(value=1.0))
    yield Row(what="launches a token", ours=launches, unit="launches", note=json.dumps(counts))


def memory(bench: Bench, pack: Pack) -> Iterator[Row]:
    """Peak memory of an answer beyond weights and KV caches."""
    what = "device memory of an answer"
    if bench.device.type != "cuda":
        yield Row(what=what, skipped="no CUDA device")
        return
    weights = sum(p.nbytes for model in bench.models for p in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    bench.fused(pack, bench.context, bench.tokens)
    peak = float(torch.cuda.max_memory_allocated())
    caches = sum(_cache_bytes(member) for member in pack.members)
    yield compare(
        what, "weights and KV caches", [peak / 2**30], [(weights + caches) / 2**30], unit="GiB",
        target=Target(value=1.05),
    )  # fmt: skip


def _cache_bytes(member: Any) -> int:
    """Memory of the static KV stores of a member."""
    stores = member._stores.stores if isinstance(member, StaticMember) else ()
    return sum(t.nbytes for store in stores for pair in store.layers for t in pair or ())
