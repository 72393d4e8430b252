"""Speculative decoding with drafts that the pack verifies, and the gate of SAFE as a baseline."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

from packfuse import Answer

from .bench import Bench
from .clock import exactly, interleave, seconds
from .rows import Part, Row, Target, compare

Arguments = dict[str, Any]
_EVERY = "fusing at every token"
_PROSE = 64
_BEGUN = 200
"""How much of the quotation the prompt holds, in characters: enough for models to go on with it."""
_QUOTED = 16
"""Shorter common pieces are no quotation, in characters."""

_DRAFTS: dict[str, Arguments] = {
    "draft='auto'": {"draft": "auto"},
    "draft='reference'": {"draft": "reference"},
    # SAFE fuses only where it has to (arXiv 2510.15346); the other answers fuse at every token.
    "gate='safe', draft='reference'": {"gate": "safe", "draft": "reference"},
}
_LOOKUPS: dict[str, Arguments] = {
    "draft='lookup'": {"draft": "lookup"},
    "prompt_lookup_num_tokens=10": {"prompt_lookup_num_tokens": 10},
}
_BOUNDS = {"draft='auto'": 0.75, "draft='lookup'": 0.5, "gate='safe', draft='reference'": 0.7}


def measure(bench: Bench) -> Part:
    """Whole calls, on prose and on an answer that quotes its context."""
    prose = [bench.prose(_PROSE) for _ in range(bench.rounds)]
    passages = [bench.prose(2 * bench.answer) for _ in range(bench.rounds)]
    quoting = [_question(passage) for passage in passages]
    rows = [
        *_rows(bench, "plain prose", prose, _DRAFTS),
        *_rows(bench, "quoting its context", quoting, _LOOKUPS, passages),
    ]
    about = (
        f"Greedy, {bench.answer} tokens, wall time of the whole call, {bench.rounds} times in "
        "turn, a new text each time."
    )
    return Part(title="Speculative decoding", about=about, rows=rows)


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
    passages: list[str] | None = None,
) -> list[Row]:
    """A row for each way, over fusing at every token without drafts."""
    answers: dict[tuple[str, int], Answer] = {}

    def run(name: str, number: int) -> float:
        def answer() -> None:
            arguments = {**exactly(bench.answer), **ways.get(name, {})}
            answers[name, number] = bench.pack.generate(prompts[number], **arguments)

        return seconds(answer)

    times = interleave({name: partial(run, name) for name in [_EVERY, *ways]}, bench.rounds)
    return [
        compare(
            f"{what}, `{name}`",
            _EVERY,
            times[name],
            times[_EVERY],
            target=Target(value=_BOUNDS[name]) if name in _BOUNDS else None,
            note=_note(answers, name, bench.rounds, passages),
        )
        for name in ways
    ]


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
    record = answers[name, 0].record
    if record.drafts:
        counts = f"{record.drafts.accepted} of {record.drafts.drafted}"
        notes.append(f"{counts} drafted tokens accepted in round 1")
    if record.fused is not None and record.fused < 1:
        notes.append(f"{record.fused:.0%} of its tokens fused")
    if passages:
        shares = [quoted(answers[_EVERY, n].text, passages[n]) for n in range(rounds)]
        notes.append(f"{min(shares):.0%} to {max(shares):.0%} of the answer quoted")
    return "; ".join(notes)


def quoted(answer: str, passage: str) -> float:
    """Share of an answer's characters that stand in a passage, in pieces of 16 or more."""
    matcher = difflib.SequenceMatcher(None, passage, answer, autojunk=False)
    sizes = [block.size for block in matcher.get_matching_blocks() if block.size >= _QUOTED]
    return sum(sizes) / max(1, len(answer))
