"""Right answers under every gate: one reading by the members, each gate's likelihood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from packfuse import Pack
from packfuse.evaluation import Journal, Setting
from packfuse.evaluation.intervals import difference, in_bits, ratio
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.run import ask
from packfuse.evaluation.systems import Scored as ScoredSystem
from packfuse.evaluation.systems import System, singles
from packfuse.evaluation.tasks.text import Text
from packfuse.fusion.gates.base import Gate
from packfuse.fusion.gates.every import Every
from packfuse.fusion.gates.safe import Safe
from packfuse.fusion.gates.threshold import Threshold

from .quality import Scored, TextSet

EVERY = "every"
REFERENCE = "the reference alone"
BEST = "the best member alone"
GATES: dict[str, Gate] = {
    EVERY: Every(),
    "safe": Safe(),
    "threshold 0.5": Threshold(least=0.5),
    "threshold 0.9": Threshold(least=0.9),
}
_SHUT = Threshold(least=1e-30)
"""A gate that is never open."""

Answers = Mapping[str, Mapping[Question, Outcome]]


def gold(question: Question) -> Question:
    """The question with its right answer, written out, as the only text that may follow."""
    return Question(question.where, question.prompt, (question.solution,))


def measure(
    pack: Pack, title: str, questions: Sequence[Question], journal: Journal, seed: int
) -> TextSet:
    """What members and gates make of the one option of each question.

    Args:
        pack: Its settings count, but for the gate and the reference.
        title: What the questions are.
        questions: See `gold`.
        journal: Where outcomes are kept, and found again.
        seed: Of the bootstrap intervals.
    """
    references = ["auto", *pack.names]
    systems = [*alone(pack), _together(pack, references)]
    answers = answered(systems, questions, journal)
    asked = [
        question
        for question in questions
        if all(question in own and own[question].exact for own in answers.values())
    ]
    chosen = [answers[_label(EVERY, "auto")][question].reference for question in asked]
    best = min(pack.names, key=lambda name: sum(nats(answers[name], asked)))
    rows = {
        reference: [
            _row(gate, answers[_label(gate, reference)], answers, reference, asked, seed)
            for gate in [*GATES, REFERENCE]
        ]
        + [_row(BEST, answers[best], answers, reference, asked, seed, best)]
        for reference in references
    }
    return TextSet(
        title=title,
        texts=len(asked),
        length=sum(sizes(answers[best], asked)) / len(asked),
        skipped=len(questions) - len(asked),
        references=dict(Counter(chosen)),
        rows=rows,
    )


def alone(pack: Pack) -> list[System]:
    """Each member alone, in its own tokens."""
    return [ScoredSystem(own, {own.names[0]: Setting.of(own)}) for own in singles(pack)]


def answered(
    systems: Sequence[System], questions: Sequence[Question], journal: Journal
) -> dict[str, dict[Question, Outcome]]:
    """What each way makes of the one option of each question, by label."""
    answers: dict[str, dict[Question, Outcome]] = {}
    for system in systems:
        found = ask(system, Text(), questions, journal)
        if found.failed:
            raise RuntimeError(f"{', '.join(system.labels)}: {found.failed}")
        answers.update(found.outcomes)
    return answers


def nats(answers: Mapping[Question, Outcome], asked: Sequence[Question]) -> list[float]:
    """The loss on each text."""
    return [answers[question].nats or 0.0 for question in asked]


def sizes(answers: Mapping[Question, Outcome], asked: Sequence[Question]) -> list[int]:
    """Bytes of each text."""
    return [answers[question].bytes for question in asked]


def _together(pack: Pack, references: Sequence[str]) -> System:
    """The pack under every gate in the tokens of each reference."""
    own = Setting.of(pack)
    settings = {
        _label(name, reference): replace(own, gate=gate, reference=reference)
        for name, gate in {**GATES, REFERENCE: _SHUT}.items()
        for reference in references
    }
    return ScoredSystem(pack, settings)


def _label(gate: str, reference: str) -> str:
    return f"{gate} in tokens of {reference}"


def _row(
    label: str,
    own: Mapping[Question, Outcome],
    answers: Answers,
    reference: str,
    asked: Sequence[Question],
    seed: int,
    member: str = "",
) -> Scored:
    losses, every = (in_bits(nats(a, asked)) for a in (own, answers[_label(EVERY, reference)]))
    bytes_ = sizes(own, asked)
    fused = sum(size * (own[q].fused or 0.0) for q, size in zip(asked, bytes_, strict=True))
    return Scored(
        label=label,
        member=member,
        bits=ratio(losses, bytes_, seed),
        against=difference(losses, every, bytes_, seed),
        fused=None if member else fused / sum(bytes_),
    )
