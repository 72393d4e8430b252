"""Does fusing help? Every method on every development set, and the papers' own checks.

    python benchmarks/evidence.py --data FOLDER [--work FOLDER] [--only NAME] [--small] [--seed 0]

Makes docs/evidence.md with its figures and plots from what is in the folder of question files
(`piqa*.jsonl`, `arc*.jsonl`, `mmlu*.jsonl`, `triviaqa*.jsonl`, `gsm8k*.jsonl`). Interrupted, it
goes on where it stopped. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common import machine
from passages import passages
from rich.console import Console
from rich.progress import track  # noqa: F401

from packfuse import Pack
from packfuse.evaluation import (
    Evaluation,
    Journal,
    Setting,
    evaluate,
    every_method,
    grid,
    read_questions,
)
from packfuse.registry import alignments, rules, tasks, weightings, written


@dataclass(frozen=True)
class Run:
    """One file under one task and some settings.

    Attributes:
        name: Of the result.
        pattern: Of the file's name.
        task: As people write it.
        limit: Questions.
        settings: Which of `_settings`.
    """

    name: str
    pattern: str
    task: str
    limit: int
    settings: str


RUNS = (
    Run("piqa", "piqa*.jsonl", "choice", 300, "methods"),
    Run("arc", "arc*.jsonl", "choice", 300, "methods"),
    Run("text", "text.jsonl", "text", 120, "methods"),
    Run("piqa-alignments", "piqa*.jsonl", "choice", 100, "alignments"),
    Run("arc-alignments", "arc*.jsonl", "choice", 100, "alignments"),
    Run("text-alignments", "text.jsonl", "text", 40, "alignments"),
    Run("arc-letter", "arc*.jsonl", "letter:shots=3", 150, "methods"),
    Run("mmlu-letter", "mmlu*.jsonl", "letter:shots=3", 150, "methods"),
    Run("triviaqa", "triviaqa*.jsonl", "answer:shots=4,max_tokens=12", 100, "written"),
    Run("gsm8k", "gsm8k*.jsonl", "number:shots=2,max_tokens=120", 24, "written-short"),
)


def settings_for(kind: str, pack: Pack) -> list[Setting]:
    """The settings of a run."""
    own = Setting.of(pack)
    references = ["auto", *pack.names]
    methods = every_method(own)
    if kind == "methods":
        fixed = [s for s in grid(own, pack.names, 4)] + [
            s for s in grid(replace(own, rule=rules().make("mixture")), pack.names, 4)
        ]
        return [replace(s, reference=r) for r in references for s in [*methods, *fixed]]
    if kind == "alignments":
        others = [alignments().make(name) for name in ("prefix", "mined")]
        return [
            replace(s, alignment=alignment, reference=r)
            for alignment in others
            for r in references
            for s in methods
        ]
    named = {
        "written": ("packllm/exact", "packllm/sim", "mixture/exact", "unite/uniform/prefix"),
        "written-short": ("packllm/exact", "unite/uniform/prefix"),
    }
    return [Setting.parse(text, pack) for text in named[kind]]


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--work", type=Path, default=Path(".evidence"), help="what is computed")
    parser.add_argument("--only", action="append", help="one run by name; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(stderr=True)
    options.work.mkdir(parents=True, exist_ok=True)
    pack = Pack.starter(progress=False)
    (options.work / "text.jsonl").write_text(
        "".join(
            json.dumps({"text": passage.text, "kind": passage.kind}) + "\n"
            for passage in passages(options.seed, 20, options.data)
        ),
        encoding="utf-8",
    )
    with Journal(options.work / "answers.jsonl") as journal:
        for run in RUNS:
            if options.only and run.name not in options.only:
                continue
            started = time.time()
            found = one(run, pack, options, journal, console)
            (options.work / f"{run.name}.json").write_text(found.model_dump_json(indent=1))
            console.print(f"{run.name}: {time.time() - started:.0f} s")


def one(
    run: Run, pack: Pack, options: argparse.Namespace, journal: Journal, console: Console
) -> Evaluation:
    """One run."""
    folder = options.work if run.pattern == "text.jsonl" else options.data
    path = sorted(folder.glob(run.pattern))[0]
    task = tasks().make(written(run.task))
    asked = read_questions(path, task, run.limit, options.seed)
    said = 0

    def step(done: int, total: int) -> None:
        nonlocal said
        if done * 20 // total > said:
            said = done * 20 // total
            console.print(f"{run.name} {done}/{total} {time.strftime('%H:%M:%S')}")

    return evaluate(
        pack,
        asked,
        task,
        settings_for(run.settings, pack),
        journal=journal,
        seed=options.seed,
        step=step,
    )


if __name__ == "__main__":
    main()
