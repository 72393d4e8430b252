"""Does fusing help? Every rule and weighting, with default parameters, on questions and text.

    python benchmarks/evidence.py [--data FOLDER] [--only NAME] [--small] [--seed 0] [--save]

Questions come from a folder of JSON lines (`piqa*.jsonl`, `arc*.jsonl`, `mmlu*.jsonl`,
`triviaqa*.jsonl`, `gsm8k*.jsonl`), text from Python's own documentation and source, and for the
pack of three from files that its expert was not trained on. An interrupted run goes on where it
stopped. The last line of the output is one JSON document; `--save` keeps it in
benchmarks/measured and writes the tables and the picture of docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from common import MEASURED, machine, progress
from passages import LENGTH, passages, write_jsonl

from packfuse import Pack
from packfuse.evaluation import Evaluation, Journal, Setting, evaluate, read_questions
from packfuse.evaluation.tasks import tasks
from packfuse.registry import parse_spec
from packfuse.view.picture import Picture, new_figure

ROOT = Path(__file__).parents[1]
DOMAINS = {"Kubernetes": 16, "Python": 10, "Documentation": 10, "License": 6, "GSM8K": 10}
"""Passages of each domain for the pack of three; its expert was trained on none of them."""


@dataclass(frozen=True)
class Run:
    """One file of questions under one task.

    Attributes:
        title: What the tables call it.
        pattern: The file's name.
        task: The task with its parameters.
        limit: How many questions are asked.
        expert: Whether the pack has the expert as its third member.
    """

    title: str
    pattern: str
    task: str
    limit: int
    expert: bool = False


RUNS = {
    "piqa": Run("PIQA", "piqa*.jsonl", "choice", 300),
    "arc": Run("ARC-Challenge", "arc*.jsonl", "choice", 300),
    "text": Run("Plain text", "text.jsonl", "text", 60),
    "arc-letter": Run("ARC-Challenge, by letter", "arc*.jsonl", "letter:shots=2", 60),
    "mmlu-letter": Run("MMLU, by letter", "mmlu*.jsonl", "letter:shots=2", 60),
    "triviaqa": Run("TriviaQA", "triviaqa*.jsonl", "answer:shots=4,max_tokens=12", 32),
    "gsm8k": Run("GSM8K", "gsm8k*.jsonl", "number:shots=1,max_tokens=96", 8),
    **{
        (name := f"domain-{title.lower()}"): Run(title, f"{name}.jsonl", "text", count, expert=True)
        for title, count in DOMAINS.items()
    },
}


def write_texts(wanted: list[str], options: argparse.Namespace) -> None:
    """Write the files that are made here: plain text, and passages of each domain."""
    size = LENGTH // 5 if options.small else LENGTH
    texts = [passage.text[:size] for passage in passages(options.seed, 10, options.data)]
    write_jsonl(options.work / "text.jsonl", texts)
    found = passages(options.seed, max(DOMAINS.values()), options.data)
    for title, count in DOMAINS.items():
        name = f"domain-{title.lower()}"
        if name not in wanted:
            continue
        texts = [passage.text for passage in found if passage.kind == title.lower()][:count]
        if title == "Kubernetes":
            sys.path.insert(0, str(ROOT / "training"))
            from corpus import corpus, cuts

            texts = cuts(corpus(options.wheel)[1], count, LENGTH, options.seed)
        if texts:
            write_jsonl(options.work / f"{name}.jsonl", texts)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """A summary of every run that was asked for and whose file exists."""
    wanted = options.only or list(RUNS)
    write_texts(wanted, options)
    packs: dict[bool, Pack] = {}
    found: dict[str, Any] = {}
    with Journal(options.work / "answers.jsonl") as journal:
        for name in wanted:
            run = RUNS[name]
            folders = [folder for folder in (options.work, options.data) if folder]
            paths = [path for folder in folders for path in sorted(folder.glob(run.pattern))]
            if not paths:
                print(f"{name}: no file {run.pattern}", file=sys.stderr)
                continue
            if run.expert not in packs:
                packs[run.expert] = Pack.starter("small", progress=False, expert=run.expert)
            pack, task = packs[run.expert], tasks().make(parse_spec(run.task))
            limit = min(run.limit, options.limit or run.limit)
            asked = read_questions(paths[0], task, limit, options.seed)
            step = progress(name)
            result = evaluate(pack, asked, task, journal=journal, seed=options.seed, step=step)
            found[name] = {"title": run.title, **summary(result, Setting.of(pack))}
    return found


def summary(found: Evaluation, own: Setting) -> dict[str, Any]:
    """What the pages cite of one run; `shown` names the rows of the tables."""
    fields = {"weights", "accuracy", "bits_per_byte", "against"}
    dumped = own.dump()
    kinds = ("fusion", "weighting")
    cited = [r for r in found.rows if r.member or any(r.setting[k] == dumped[k] for k in kinds)]
    weightings = {"default": dumped["weighting"]["name"], "uniform": "uniform", "top1": "top1"}
    labels = {name: _label(found, dumped, weighting) for name, weighting in weightings.items()}
    return {
        "texts": found.questions,
        "members": found.members,
        "best": found.best,
        "shown": {name: label for name, label in labels.items() if label},
        "rows": {row.label: row.model_dump(include=fields, mode="json") for row in cited},
    }


def _label(found: Evaluation, own: Mapping[str, Any], weighting: str) -> str | None:
    """The pack's own setting with that weighting, if it was measured."""
    wanted = {name: own[name] for name in ("fusion", "alignment", "reference")}
    for row in found.packs:
        setting = row.setting or {}
        if setting["weighting"]["name"] == weighting and wanted.items() <= setting.items():
            return row.label
    return None


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """Loss minus the best member's, with its interval, by run: defaults, equal weights, `top1`."""
    known = [run for run in reversed(runs.values()) if "bits_per_byte" in run["best"]]
    labels = [run["title"] + ", 3 members" * (len(run["members"]) > 2) for run in known]
    figure = new_figure(8, 0.8 + 0.45 * len(known))
    axes = figure.subplots()
    names = {"default": "fitted weights (exact)", "uniform": "equal weights", "top1": "top1"}
    for shift, (name, title) in enumerate(names.items()):
        rows = [run["rows"][run["shown"][name]]["against"]["bits_per_byte"] for run in known]
        values = [row["value"] for row in rows]
        places = [at + 0.22 * (1 - shift) for at in range(len(known))]
        ends = [[abs(row[end] - row["value"]) for row in rows] for end in ("low", "high")]
        axes.errorbar(values, places, xerr=ends, fmt="o", markersize=4, capsize=2, label=title)
    axes.axvline(0, color="#444444", linewidth=1)
    axes.set_yticks(range(len(known)), labels)
    axes.set_xlabel("bits per byte, pack minus best member alone (left of 0: the pack is better)")
    axes.legend(fontsize=8)
    Picture(figure).save(path, dpi=120)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of question files")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "results" / "evidence")
    parser.add_argument("--only", action="append", choices=RUNS, help="a run; repeatable")
    parser.add_argument("--limit", type=int, help="most questions of a run")
    parser.add_argument(
        "--small", action="store_true", help="two short texts, to check that it runs"
    )
    parser.add_argument("--wheel", type=Path, help="the wheel that the expert's text comes from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="keep the results, write the page")
    options = parser.parse_args()
    if options.small:
        options.limit, options.only = 2, options.only or ["text"]
    options.work.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "runs": measure(options)}
    if options.save and not options.small:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (MEASURED / "evidence.json").write_text(text, encoding="utf-8")
        draw(results["runs"], ROOT / "docs" / "evidence.png")
        tables.main()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
