"""Problems worked out in writing under every gate, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from packfuse import Pack
from packfuse.evaluation import Journal
from packfuse.evaluation.intervals import in_bits
from packfuse.evaluation.journal import digest
from packfuse.evaluation.question import Question
from packfuse.evaluation.systems import singles
from packfuse.evaluation.tasks.base import Task
from packfuse.fusion.gates import gates

from .clock import exactly, interleave
from .gold import EVERY, GATES
from .quality import Writing, Written

ENOUGH = 8
"""Tokens of an answer from which on its time tells anything."""
_GRAM = 4
"""Words that make a run worth counting."""

Said = dict[str, Any]
"""One answer, as the journal keeps it."""


def measure(
    pack: Pack, title: str, task: Task, questions: Sequence[Question], journal: Journal
) -> Writing:
    """Let all ways answer each question in turn, greedily.

    Args:
        pack: Its settings count, but for gate and draft; it should keep prefixes, so that the
            prompt of a question is read once.
        title: What the questions are.
        task: Their kind; it marks answers.
        questions: At least one.
        journal: Where answers are kept, and found again.
    """
    members = singles(pack)
    ways: dict[str, tuple[Pack, Said]] = {EVERY: (pack, {})}
    for name, gate in GATES.items():
        settings = {"gate": gates().dump(gate), "draft": "reference"}
        ways[f"{name}, `draft='reference'`"] = (pack, settings)
    ways |= {f"{own.names[0]} alone": (own, {}) for own in members}

    def run(own: Pack, arguments: Said, number: int) -> Said:
        question = questions[number]
        key = _key(own, arguments, task, question)
        known: Said | None = journal.get(key)
        if known is None:
            known = _answer(own, arguments, task, question)
            known["nats"] = _nats(members, question.prompt, known["text"])
            journal.add(key, known)
        return known

    answers = interleave({name: partial(run, *way) for name, way in ways.items()}, len(questions))
    rows = [_row(name, answers) for name in ways]
    return Writing(title=title, questions=len(questions), rows=rows)


def _key(pack: Pack, arguments: Said, task: Task, question: Question) -> str:
    """Under which an answer is kept."""
    identity = [str(pack.identity), str(arguments), task.model_dump_json()]
    return digest("written", *identity, question.key)


def _answer(pack: Pack, arguments: Said, task: Task, question: Question) -> Said:
    """One answer, timed from the end of its prompt on."""
    settings = {"stop": task.stop or None, **arguments}
    pack.generate(question.prompt, **exactly(1), **settings)
    started, worked = time.perf_counter(), time.process_time()
    answer = pack.generate(
        question.prompt, do_sample=False, max_new_tokens=task.max_tokens, **settings
    )
    return {
        "seconds": time.perf_counter() - started,
        "work": time.process_time() - worked,
        "text": answer.text,
        "right": task.mark(question, answer.text).right,
        "tokens": answer.record.usage.completion_tokens,
        "fused": answer.record.fused,
    }


def _nats(members: Sequence[Pack], prompt: str, text: str) -> dict[str, float]:
    """The loss of each member alone on an answer; none on an empty one."""
    return {own.names[0]: -own.score(prompt, text) if text else 0.0 for own in members}


def _row(label: str, answers: Mapping[str, Sequence[Said]]) -> Written:
    own, every = answers[label], answers[EVERY]
    pairs = list(zip(own, every, strict=True))
    size = sum(len(answer["text"].encode()) for answer in own)
    fused = [answer["fused"] for answer in own if answer["fused"] is not None]
    return Written(
        label=label,
        right=statistics.mean(bool(answer["right"]) for answer in own),
        bits={
            name: sum(in_bits([answer["nats"][name] for answer in own])) / max(1, size)
            for name in own[0]["nats"]
        },
        repeated=repeated([answer["text"] for answer in own]),
        tokens=statistics.mean(answer["tokens"] for answer in own),
        fused=statistics.mean(fused) if fused and not label.endswith("alone") else None,
        same=sum(one["text"] == other["text"] for one, other in pairs),
        empty=sum(not answer["text"].strip() for answer in own),
        time=_per_token(pairs, "seconds"),
        work=_per_token(pairs, "work"),
    )


def _per_token(pairs: Sequence[tuple[Said, Said]], what: str) -> float | None:
    """Median ratio of what a token took, where both answers are long enough to tell."""
    ratios = [
        (one[what] / one["tokens"]) / (other[what] / other["tokens"])
        for one, other in pairs
        if min(one["tokens"], other["tokens"]) >= ENOUGH
    ]
    return statistics.median(ratios) if ratios else None


def repeated(texts: Sequence[str]) -> float:
    """Share of runs of four words that stood in the same text before."""
    runs, distinct = 0, 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
        runs, distinct = runs + len(grams), distinct + len(set(grams))
    return 1 - distinct / runs if runs else 0.0
