"""Calls leave nothing behind but what a cache keeps within its limit."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.alignment.straddle import StraddleIndex
from packfuse.models.compute import heap
from tests.support import fusing
from tests.support.small import small_pack

CHAT = [{"role": "user", "content": "hello the long true"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]:"


def every_kind(pack: Pack) -> None:
    """One call of every kind."""
    for fusion in ("packllm", "mixture", "unite"):
        for weighting in ("exact", "opt", "sim", "top1", "uniform"):
            pack.generate("hello the", fusion=fusion, weighting=weighting, max_new_tokens=2)
    pack.generate(["hello", "the long true"], max_new_tokens=2)
    pack.generate("hello the", num_beams=2, max_new_tokens=2)
    pack.generate("hello the", temperature=1.0, seed=1, num_return_sequences=2, max_new_tokens=2)
    for draft in ("lookup", "reference", "members", "auto"):
        pack.generate("hello the", draft=draft, max_new_tokens=3)
    pack.generate(CHAT, constraint=SCHEMA, max_new_tokens=3, trace=True)
    pack.score("hello", " the long")
    pack.weigh("hello the")
    stream = pack.stream("hello the", max_new_tokens=9)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    ids = torch.tensor([pack.tokenizer("hello the").input_ids])
    pack.model.generate(ids, max_new_tokens=2)
    pack.model(ids)


def alive() -> Counter[str]:
    """Objects of packfuse, tensors and grammars, by class."""
    gc.collect()
    kinds = (type(one) for one in gc.get_objects())
    return Counter(
        kind.__name__
        for kind in kinds
        if str(kind.__module__).startswith(("packfuse", "torch", "llguidance", "transformers"))
    )


def test_a_second_round_of_calls_adds_no_object() -> None:
    pack = small_pack(template=TEMPLATE, prefix_cache=2**16)
    every_kind(pack)
    every_kind(pack)
    before = alive()
    for _ in range(3):
        every_kind(pack)
    assert alive() - before == Counter()
    pack.forget()


def test_tokens_with_many_partners_take_little_memory() -> None:
    deepseek, mistral = fusing.vocabulary("deepseek"), fusing.vocabulary("mistral")
    pairing: Any = alignments().make("bytes").pair(deepseek, mistral)
    index: StraddleIndex = pairing._index
    counts = [len(index.pairs.partners(target)) for target in range(mistral.size)]
    targets = sorted(range(mistral.size), key=counts.__getitem__)[-200:]
    partners = sum(counts[target] for target in targets)
    assert partners > 30_000
    masks = [index._longer(target) for target in targets]
    assert sum(mask.nbytes for mask in masks) == partners
    index._longer.cache_clear()
    tracemalloc.start()
    for target in targets:
        index._longer(target)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000


def resident() -> int:
    """Resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(heap._glibc() is None, reason="only glibc keeps memory by thread")
def test_free_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "MAX_FREE", 2**20)
    blocks = [bytearray(64 * 2**10) for _ in range(2000)]
    last = blocks[-1]  # above the others: the C library cannot just shrink its heap
    del blocks
    before = resident()
    assert heap.free_bytes() > 100 * 2**20
    heap.Trimmer()()
    assert resident() < before - 50 * 2**20
    assert last is not None
