"""The same context again: what is kept between calls."""

from __future__ import annotations

from packfuse import Pack

from .bench import Bench, has_setting
from .clock import exactly, seconds
from .rows import Part, Row, Target, compare

_SETTING = "prefix_cache"


def measure(bench: Bench) -> Part:
    """Time to the first token of a second question about a context, over the first one's."""
    what = f"second question about a context of {bench.reused:,} tokens, time to first token"
    target = Target(value=0.15)
    if has_setting(_SETTING):
        pack = bench.variant(**{_SETTING: "auto"})
        first, second = zip(*(_pair(bench, pack) for _ in range(bench.rounds)), strict=True)
        row = compare(what, "the first question", second, first, target=target)
    else:
        row = Row(what=what, target=target, skipped=f"packs have no setting `{_SETTING}`")
    about = f"{bench.rounds} times, with a new text each time; one token is generated."
    return Part(title="Reading a context again", about=about, rows=[row])


def _pair(bench: Bench, pack: Pack) -> tuple[float, float]:
    context = bench.prose(bench.reused)

    def asked(question: str) -> float:
        prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
        return seconds(lambda: pack.generate(prompt, **exactly(1)))

    return asked("What is this about?"), asked("Which names does it mention?")
