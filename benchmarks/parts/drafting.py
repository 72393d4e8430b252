"""Below the floor: drafts that the pack verifies, and steps that are not fused."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

from packfuse import Answer

from .bench import Bench, refusal
from .clock import exactly, interleave, seconds
from .rows import Part, Row, Target, compare

Arguments = dict[str, Any]
_EVERY = "fusing at every token"
_PROSE = 64
_BEGUN = 200
"""How much of the quotation is there already, in characters: enough for models to go on with it."""
_QUOTED = 16
"""Shorter pieces in common are no quotation, in characters."""

_DRAFTS: dict[str, Arguments] = {
    f"draft={name!r}": {"draft": name} for name in ("auto", "reference")
}
_LOOKUPS: dict[str, Arguments] = {
    "draft='lookup'": {"draft": "lookup"},
    "prompt_lookup_num_tokens=10": {"prompt_lookup_num_tokens": 10},
}
_GATES: dict[str, Arguments] = {
    f"gate={name!r}, draft='reference'": {"gate": name, "draft": "reference"}
    for name in ("safe", "threshold")
}


def measure(bench: Bench) -> Part:
    """Whole calls, on prose and on an answer that quotes its context."""
    prose = [bench.prose(_PROSE) for _ in range(bench.rounds)]
    passages = [bench.prose(2 * bench.answer) for _ in range(bench.rounds)]
    quoting = [_question(passage) for passage in passages]
    rows = [
        *_rows(bench, "plain prose", prose, _DRAFTS, {"draft='auto'": 0.75}),
        *_rows(bench, "quoting its context", quoting, _LOOKUPS, {"draft='lookup'": 0.5}, passages),
        *_rows(bench, "plain prose", prose, _GATES, {"gate='safe', draft='reference'": 0.7}),
    ]
    about = (
        f"Greedy, {bench.answer} tokens, wall time of the whole call, {bench.rounds} times in "
        "turn, a new text each time."
    )
    return Part(title="Drafts and gates", about=about, rows=rows)


def _question(passage: str) -> str:
    """A prompt that is best continued by the passage itself."""
    return (
        f"Context:\n{passage}\n\nQuestion: What does the documentation say, word for word?\n\n"
        f'Answer: The documentation says: "{passage[:_BEGUN]}'
    )


def _rows(
    bench: Bench,
    what: str,
    prompts: list[str],
    ways: Mapping[str, Arguments],
    bounds: Mapping[str, float],
    passages: list[str] | None = None,
) -> list[Row]:
    """A row for each way that the pack knows; others that have a target say why not."""
    pack = bench.pack
    reasons = {name: refusal(pack, prompts[0], ways[name]) for name in ways}
    known = {name: ways[name] for name, reason in reasons.items() if reason is None}
    answers: dict[tuple[str, int], Answer] = {}

    def run(name: str, number: int) -> float:
        arguments = {**exactly(bench.answer), **known.get(name, {})}

        def answer() -> None:
            answers[name, number] = pack.generate(prompts[number], **arguments)

        return seconds(answer)

    runs = {name: partial(run, name) for name in [_EVERY, *known]}
    times = interleave(runs, bench.rounds if known else 0)
    rows = []
    for name, reason in reasons.items():
        target = Target(value=bounds[name]) if name in bounds else None
        title = f"{what}, `{name}`"
        if reason is None:
            note = _note(answers, name, bench.rounds, passages)
            row = compare(title, _EVERY, times[name], times[_EVERY], target=target, note=note)
            rows.append(row)
        elif target:
            rows.append(Row(what=title, against=_EVERY, target=target, skipped=reason))
    return rows


def _note(
    answers: Mapping[tuple[str, int], Answer],
    name: str,
    rounds: int,
    passages: list[str] | None,
) -> str:
    pairs = [(answers[name, n], answers[_EVERY, n]) for n in range(rounds)]
    same = sum(one.token_ids == other.token_ids for one, other in pairs)
    decoding = [[answer.record.timings.decode_seconds for answer in pair] for pair in pairs]
    ratio = statistics.median(own / every for own, every in decoding)
    notes = [f"{same} of {rounds} answers the same", f"without the prompt {ratio:.2f}"]
    drafts = answers[name, 0].record.drafts
    if drafts:
        notes.append(f"{drafts.accepted} of {drafts.drafted} drafted tokens accepted in round 1")
    fused = answers[name, 0].record.fused
    if fused is not None and fused < 1:
        notes.append(f"{fused:.0%} of its tokens fused")
    if passages:
        shares = [quoted(answers[_EVERY, n].text, passages[n]) for n in range(rounds)]
        notes.append(f"{min(shares):.0%} to {max(shares):.0%} of the answer quoted")
    return "; ".join(notes)


def quoted(answer: str, passage: str) -> float:
    """Share of an answer's characters that stand in a passage, in pieces worth the name."""
    matcher = difflib.SequenceMatcher(None, passage, answer, autojunk=False)
    sizes = [block.size for block in matcher.get_matching_blocks() if block.size >= _QUOTED]
    return sum(sizes) / max(1, len(answer))
