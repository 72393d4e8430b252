"""A second question about the same context: what the prefix cache saves."""

from __future__ import annotations

from packfuse import Pack

from .bench import Bench
from .clock import exactly, seconds
from .rows import Part, Target, compare


def measure(bench: Bench) -> Part:
    """Time to the first token of a second question about a context, over that of the first."""
    pack = bench.variant(prefix_cache="auto")
    first, second = zip(*(_pair(bench, pack) for _ in range(bench.rounds)), strict=True)
    what = f"second question about a context of {bench.reused:,} tokens, time to first token"
    row = compare(what, "the first question", second, first, target=Target(value=0.15))
    about = f"{bench.rounds} times, with a new text each time; one token is generated."
    return Part(title="Reading a context again", about=about, rows=[row])


def _pair(bench: Bench, pack: Pack) -> tuple[float, float]:
    context = bench.prose(bench.reused)

    def asked(question: str) -> float:
        prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
        return seconds(lambda: pack.generate(prompt, **exactly(1)))

    return asked("What is this about?"), asked("Which names does it mention?")
