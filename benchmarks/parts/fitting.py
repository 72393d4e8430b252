"""Fitting weights to a prompt, against reading the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

from .bench import Bench
from .clock import alone, exactly, interleave
from .papers import PUBLISHED
from .rows import Part, Target, compare

_CONTEXT = 512
_WEIGHTINGS: dict[str, Any] = {
    "exact": "exact",
    "opt": "opt",
    "sim": "sim",
    "opt as published": PUBLISHED,
}


def measure(bench: Bench) -> Part:
    """Time of the fit itself, over that of the prompt pass that scores the prompt."""
    context = min(_CONTEXT, max(bench.contexts))
    runs = {
        name: partial(_timings, bench, context, weighting)
        for name, weighting in _WEIGHTINGS.items()
    }
    found = interleave(runs, bench.rounds)
    read = {name: [t.prefill_seconds for t in timings] for name, timings in found.items()}
    fit = {name: [t.weights_seconds for t in timings] for name, timings in found.items()}
    rows = [
        compare(
            f"`{name}` weights",
            "reading the prompt",
            fit[name],
            read[name],
            target=Target(value=0.1) if name == "exact" else None,
        )
        for name in ("exact", "opt", "sim")
    ]
    published = fit["opt as published"]
    rows.append(compare("`exact` weights", "greedy search as published", fit["exact"], published))
    bare = [_bare(bench, context) for _ in range(bench.rounds)]
    rows.append(compare("reading and scoring", "the members' first token", read["exact"], bare))
    about = f"Prompts of {context} tokens, {bench.rounds} times in turn, a new text each time."
    return Part(title="Fitting weights", about=about, rows=rows)


def _timings(bench: Bench, context: int, weighting: Any, number: int) -> Any:
    answer = bench.pack.generate(bench.prose(context), weighting=weighting, **exactly(1))
    return answer.record.timings


def _bare(bench: Bench, context: int) -> float:
    """Seconds until both members alone have generated their first token."""
    prompt = bench.prose(context)
    return sum(alone(member, [prompt], 3).first for member in bench.members)
