"""Steps in compiled code, against steps as they are and the members' own compiled steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import CompileConfig

from packfuse import Pack
from packfuse.models.hf_member import HFMember

from .bench import Bench
from .clock import Timing, alone, fused, interleave
from .rows import Part, Row, Target, compare

FLOOR = "sum of the members' compiled steps"


def measure(bench: Bench) -> Part:
    """Time per token with `compiled=True`."""
    packs = {"plain": bench.pack, "compiled": bench.variant(compiled=True)}
    found = times(bench, bench.members, packs)
    what = f"time per token, context {bench.contexts[0]:,}, compiled"
    row = row_of(what, found, bench.members)
    plain = compare(
        what,
        "the same, not compiled",
        [1000 * timing.step for timing in found["compiled"]],
        [1000 * timing.step for timing in found["plain"]],
        unit="ms",
    )
    about = (
        "One prompt, greedy, all heads whole. The members alone run transformers' own `generate` "
        "with a static cache and `CompileConfig()`. Everybody's steps were compiled before."
    )
    return Part(title="Compiled steps", about=about, rows=[plain, row])


def times(bench: Bench, members: list[HFMember], packs: dict[str, Pack]) -> dict[str, list[Timing]]:
    """Packs and members, compiled by transformers, in turn; by name."""
    rounds = [bench.prose(bench.contexts[0]) for _ in range(bench.rounds + 1)]
    contestants: dict[str, Callable[[int], Timing]] = {
        member.name: partial(_alone, bench, member, rounds) for member in members
    }
    for name, pack in packs.items():
        contestants[name] = partial(_fused, bench, pack, rounds)
    for run in contestants.values():
        run(bench.rounds)
    return interleave(contestants, bench.rounds)


def row_of(
    what: str,
    found: dict[str, list[Timing]],
    members: list[HFMember],
    target: Target | None = None,
) -> Row:
    """The compiled pack over the sum of its members."""
    floor = zip(*(found[member.name] for member in members), strict=True)
    return compare(
        what,
        FLOOR,
        [1000 * timing.step for timing in found["compiled"]],
        [1000 * sum(timing.step for timing in row) for row in floor],
        unit="ms",
        target=target,
    )


def _alone(bench: Bench, member: HFMember, rounds: list[str], number: int) -> Timing:
    config: Any = CompileConfig()
    config._compile_all_devices = True
    return alone(
        member, rounds[number : number + 1], bench.tokens,
        cache_implementation="static", compile_config=config,
    )  # fmt: skip


def _fused(bench: Bench, pack: Pack, rounds: list[str], number: int) -> Timing:
    return fused(pack, rounds[number : number + 1], bench.tokens)
