"""Packs against the papers' way of fusing."""

from __future__ import annotations

from itertools import takewhile

from packfuse import Pack

from .bench import FAST, Bench
from .clock import exactly, seconds
from .papers import MINED, PUBLISHED, PapersWay
from .rows import Part, Row, Target, compare

_PROMPT = "The history of the printing press begins"
_CHECKED = 16


def measure(bench: Bench) -> Part:
    """Whole calls, weights included: a short prompt, and a long one."""
    context, tokens = bench.long
    way = PapersWay(bench.members, bench.pack.default_reference)
    short = f"short prompt, {bench.short} new tokens"
    long = f"context {context:,}, {tokens} new tokens"
    rows = [
        *_rows(bench, way, _PROMPT, bench.short, short, Target(value=4, least=True)),
        *_rows(bench, way, bench.prose(context), tokens, long, Target(value=12, least=True)),
    ]
    about = (
        "Greedy, one round, wall time of the whole call. The papers' way: the first member keeps "
        "its KV cache, the others read the whole text again for every token through the MinED "
        "table, and a greedy search over whole vocabularies finds the weights. Its table, like the "
        "pack's alignment, is loaded before the call."
    )
    return Part(title="Against the papers' way", about=about, rows=rows)


def _rows(
    bench: Bench, way: PapersWay, prompt: str, tokens: int, what: str, target: Target
) -> list[Row]:
    """The pack with plain settings, and with the fast ones, to which the target applies."""
    named = ", ".join(f"`{name}={value!r}`" for name, value in FAST.items())
    packs = {what: bench.pack, f"{what}, {named}": bench.variant(**FAST)}
    ours = {name: _seconds(pack, prompt, tokens) for name, pack in packs.items()}
    written: list[int] = []
    theirs = seconds(lambda: written.extend(way.write(prompt, tokens)))
    rows = [
        compare(name, "the papers' way", [own], [theirs], speedup=True)
        for name, own in ours.items()
    ]
    rows[0].note = _agreement(bench, prompt, written[:_CHECKED])
    rows[-1].target = target
    return rows


def _seconds(pack: Pack, prompt: str, tokens: int) -> float:
    return seconds(lambda: pack.generate(prompt, **exactly(tokens)))


def _agreement(bench: Bench, prompt: str, written: list[int]) -> str:
    """How many tokens a pack under the papers' settings generates alike."""
    same = bench.variant(alignment=MINED, weighting=PUBLISHED)
    answer = same.generate(prompt, **exactly(len(written)))
    pairs = zip(answer.token_ids, written, strict=True)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    weights = " and ".join(f"{weight:.2f}" for weight in answer.record.weights.values())
    return (
        f"{alike} of its first {len(written)} tokens are those of a pack under its settings, "
        f"weights {weights}"
    )
