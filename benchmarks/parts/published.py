"""Packs against the papers' way of fusing."""

from __future__ import annotations

from itertools import takewhile

from .bench import Bench
from .clock import exactly, seconds
from .papers import PUBLISHED, PapersWay
from .rows import Part, Row, Target, compare

_PROMPT = "The history of the printing press begins"
_CHECKED = 16


def measure(bench: Bench) -> Part:
    """Whole calls, weights included: a short prompt, and a long one."""
    way = PapersWay(bench.members, bench.pack.default_reference)
    context, tokens = bench.long
    rows = [
        _row(bench, way, _PROMPT, bench.short, f"short prompt, {bench.short} new tokens", 4),
        _row(
            bench,
            way,
            bench.prose(context),
            tokens,
            f"context {context:,}, {tokens} new tokens",
            12,
        ),
    ]
    about = (
        "Greedy, one round, wall time of the whole call. The papers' way: the first member keeps "
        "its cache, the others read the whole text anew for every token through the MinED table, "
        "and a greedy search over whole vocabularies finds the weights. Its table, like the "
        "pack's alignment, is there beforehand."
    )
    return Part(title="Against the papers' way", about=about, rows=rows)


def _row(bench: Bench, way: PapersWay, prompt: str, tokens: int, what: str, times: float) -> Row:
    written: list[int] = []
    ours = seconds(lambda: bench.pack.generate(prompt, **exactly(tokens)))
    theirs = seconds(lambda: written.extend(way.write(prompt, tokens)))
    return compare(
        what,
        "the papers' way",
        [ours],
        [theirs],
        speedup=True,
        target=Target(value=times, least=True),
        note=_agreement(bench, prompt, written[:_CHECKED]),
    )


def _agreement(bench: Bench, prompt: str, written: list[int]) -> str:
    """How many tokens a pack under the papers' settings writes alike."""
    same = bench.variant(alignment="mined", weighting=PUBLISHED)
    ids = same.generate(prompt, **exactly(len(written))).token_ids
    pairs = zip(ids, written, strict=True)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f"{alike} of its first {len(written)} tokens are those of a pack under its settings"
