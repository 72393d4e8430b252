"""What calibrating gains, on each file of questions and on all of them together.

    python benchmarks/calibration.py --data FOLDER [--work FOLDER] [--minutes 30] [--save]

The pack of three (Qwen2.5-Coder-0.5B-Instruct, SmolLM2-135M-Instruct, gemma-3-270m) as shipped.
Each file gives 40 to 100 questions. For each file, and for all of them mixed:

- `report`: what `packfuse determine --keep-all` says (cross-validated in ten parts);
- `decided`: the whole procedure, decision included, on questions that it did not see. One half
  decides, the other half is answered by what was decided, and the other way round.

Questions of all files are read in turn, so that a run that is out of time has some of each; the
next run goes on where it stopped. The last line of the output is one JSON document; `--save` keeps
it in benchmarks/measured.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import MEASURED, machine, progress

from packfuse import Pack
from packfuse.evaluation import Journal, read_questions
from packfuse.evaluation.calibration.answers import Array
from packfuse.evaluation.calibration.fit import Calibration, answer_logps, fit
from packfuse.evaluation.calibration.run import Calibrator
from packfuse.evaluation.calibration.validation import Asked
from packfuse.evaluation.question import Question
from packfuse.evaluation.reports.intervals import difference, in_bits
from packfuse.evaluation.tasks import tasks
from packfuse.registry import parse_spec

RUNS = {
    "ARC-Challenge": ("arc*.jsonl", "choice", 100),
    "PIQA": ("piqa*.jsonl", "choice", 60),
    "MMLU, by letter": ("mmlu*.jsonl", "letter:shots=2", 60),
    "TriviaQA": ("triviaqa*.jsonl", "answer:shots=4", 100),
    "GSM8K": ("gsm8k*.jsonl", "number:shots=1", 40),
}
"""By title: the file, the task, and the most questions."""


def draw(data: Path, seed: int) -> dict[str, list[Question]]:
    """The questions of each file in the folder, in random order."""
    found = {}
    for title, (pattern, spec, limit) in RUNS.items():
        paths = sorted(data.glob(pattern))
        if paths:
            task = tasks().make(parse_spec(spec))
            found[title] = read_questions(paths[0], task, limit, seed).questions
    return found


def in_turn(questions: Mapping[str, Sequence[Question]]) -> list[tuple[str, Question]]:
    """All questions in tens of one file, so that each beginning has as much of every file.

    In tens, because the few-shot examples of a file are then read once for ten questions.
    """
    ranked = [
        ((at // 10 + 0.5) * 10 / len(own), title, question)
        for title, own in questions.items()
        for at, question in enumerate(own)
    ]
    return [(title, question) for _, title, question in sorted(ranked, key=lambda one: one[:2])]


def read(
    calibrator: Calibrator, questions: Mapping[str, Sequence[Question]], minutes: float
) -> dict[str, list[Asked]]:
    """What the members say, of as many questions as the time allows."""
    end = time.monotonic() + 60 * minutes
    todo = in_turn(questions)
    step = progress("questions")
    found: dict[str, list[Asked]] = {title: [] for title in questions}
    for done, (title, question) in enumerate(todo):
        if time.monotonic() < end or calibrator.knows(question):
            found[title].append(calibrator.ask(question))
        step(done + 1, len(todo))
    return found


def decided(calibrator: Calibrator, asked: Sequence[Asked], seed: int) -> dict[str, Any]:
    """What one half decides, on the other half, against the member that is best on both."""
    halves = [list(asked[::2]), list(asked[1::2])]
    best = int(sum(one.alone[:, one.gold] for one in asked).argmax())
    rows: list[tuple[Asked, Array]] = []
    decisions = []
    for half, rest in (halves, halves[::-1]):
        report = calibrator.decide(half)
        decisions.append(report.decision)
        member = calibrator.pack.names.index(report.best) if report.best else best
        fitted = fit([one.scores.of_answer(one.gold) for one in half])
        rows += [(one, answered(report.decision, one, fitted, member)) for one in rest]
    sizes = [one.size for one, _ in rows]
    new = in_bits([-float(logps[one.gold]) for one, logps in rows])
    old = in_bits([-float(one.alone[best, one.gold]) for one, _ in rows])
    found: dict[str, Any] = {
        "decisions": decisions,
        "best": calibrator.pack.names[best],
        "bits_per_byte": difference(new, old, sizes, seed).model_dump(),
    }
    if all(len(one.bytes) > 1 for one in asked):
        hits = [one.right(logps) for one, logps in rows]
        theirs = [one.right(one.alone[best]) for one, _ in rows]
        found["accuracy"] = difference(hits, theirs, [1.0] * len(rows), seed).model_dump()
    return found


def answered(decision: str, asked: Asked, fitted: Calibration, member: int) -> Array:
    """Log-probabilities of the answers under what was decided."""
    if decision == "alone":
        own: Array = asked.alone[member]
        return own
    if decision == "calibrated":
        return answer_logps(asked.scores, fitted)
    return asked.scores.logp


def members(asked: Sequence[Asked], names: Sequence[str]) -> dict[str, Any]:
    """Accuracy of each member alone and of the pack as it is; empty without options."""
    if not all(len(one.bytes) > 1 for one in asked):
        return {}
    found = {
        name: float(np.mean([one.right(one.alone[k]) for one in asked]))
        for k, name in enumerate(names)
    }
    return {**found, "as it is": float(np.mean([one.right(one.scores.logp) for one in asked]))}


def main() -> None:
    """Read, calibrate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the files of questions")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--minutes", type=float, default=30, help="time for reading questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pack = Pack.starter("trio", progress=False)
    with Journal(options.work / "calibration.answers.jsonl") as journal:
        calibrator = Calibrator(pack, journal, options.seed)
        asked = read(calibrator, draw(options.data, options.seed), options.minutes)
    mixed = [one for own in asked.values() for one in own]
    random.Random(options.seed).shuffle(mixed)  # noqa: S311 - an order of questions, no secret
    found = {
        title: {
            "report": calibrator.decide(own).model_dump(mode="json"),
            "decided": decided(calibrator, own, options.seed),
            "accuracy": members(own, pack.names),
        }
        for title, own in {**asked, "mixed": mixed}.items()
    }
    result = {"machine": machine(), "members": pack.names, "seed": options.seed, "sets": found}
    text = json.dumps(result)
    if options.save:
        (MEASURED / "calibration.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
