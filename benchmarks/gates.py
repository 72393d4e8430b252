"""What gates cost in quality: right answers under every gate, and answers worked out under them.

    python benchmarks/gates.py --data FOLDER [--only PART] [--limit N] [--seed 0] [--save]

On the starter pack, greedy, from a folder of question files (`gsm8k*.jsonl`, `triviaqa*.jsonl`,
`arc*.jsonl`, `piqa*.jsonl`) and text that Python carries; about half an hour of one core. Parts can
run side by side; interrupted, each goes on where it stopped, and all together then come from what
is known. The last line of the output is one JSON document.
`--save` keeps it in benchmarks/measured and writes docs/speed.md anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import machine
from parts import gold, page, working
from parts.page import machine_line
from parts.quality import Quality
from parts.qualitypage import text_rows, writing_rows
from passages import passages
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from packfuse import Pack
from packfuse.evaluation import Journal, read_questions
from packfuse.evaluation.files import Fields
from packfuse.evaluation.question import Question
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.base import Task
from packfuse.registry import parse_spec

WORK = Path(__file__).parent / "results" / "gates"
_WIDTH = 200
"""Columns of the table where nobody sees how wide it is."""


@dataclass(frozen=True)
class TextFile:
    """One file of questions, and how many are asked."""

    title: str
    pattern: str
    task: str
    limit: int


SETS = {
    "gsm8k": TextFile("GSM8K with working", "gsm8k*.jsonl", "number:shots=1", 12),
    "triviaqa": TextFile("TriviaQA", "triviaqa*.jsonl", "answer:shots=4", 20),
    "arc": TextFile("ARC-Challenge", "arc*.jsonl", "choice", 20),
    "piqa": TextFile("PIQA", "piqa*.jsonl", "choice", 20),
}
PROSE = "prose"
_PROSE_EACH = 3
"""Passages of each of three kinds."""
WORKING = TextFile(
    "GSM8K, three worked examples before each question, at most 160 tokens",
    "gsm8k*.jsonl",
    "number:shots=3,max_tokens=160",
    8,
)
WRITING = "writing"


def arguments() -> argparse.Namespace:
    """What the command was told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts = [*SETS, PROSE, WRITING]
    parser.add_argument("--data", type=Path, required=True, help="folder of question files")
    parser.add_argument("--work", type=Path, default=WORK, help="for what is computed")
    parser.add_argument("--only", action="append", choices=parts, help="a part; repeatable")
    parser.add_argument("--limit", type=int, help="at most that many questions of each part")
    parser.add_argument("--seed", type=int, default=0, help="of the questions and the intervals")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the results and write the page")
    return parser.parse_args()


def questions(file: TextFile, options: argparse.Namespace) -> tuple[Task, list[Question]]:
    """Questions of one file with their kind."""
    task: Task = tasks().make(parse_spec(file.task))
    limit = min(file.limit, options.limit or file.limit)
    path = min(options.data.glob(file.pattern))
    return task, read_questions(path, task, limit, options.seed).questions


def texts(name: str, options: argparse.Namespace) -> tuple[str, list[Question]]:
    """The right answers of one set, or the second halves of passages, with the set's title."""
    if name != PROSE:
        return SETS[name].title, [gold.gold(q) for q in questions(SETS[name], options)[1]]
    each = min(_PROSE_EACH, options.limit or _PROSE_EACH)
    task: Task = tasks().make("text")
    read = [
        task.read(Fields({"text": passage.text}, f"{passage.kind} {number}"))
        for number, passage in enumerate(passages(options.seed, each, None))
    ]
    return "Prose and source code", [question for question in read if question is not None]


def measure(options: argparse.Namespace, log: Console) -> Quality:
    """Run the parts."""
    pack = Pack.starter(progress=False)
    told: dict[str, Any] = {"limit": options.limit, "seed": options.seed}
    found = Quality(machine=machine(), options=told)
    for name in options.only or [*SETS, PROSE, WRITING]:
        log.print(f"{time.strftime('%H:%M:%S')} {name}")
        with Journal(options.work / f"{name}.jsonl") as journal:
            if name == WRITING:
                task, asked = questions(WORKING, options)
                found.writing = working.measure(pack, WORKING.title, task, asked, journal)
            else:
                title, asked = texts(name, options)
                found.texts[name] = gold.measure(pack, title, asked, journal, options.seed)
    return found


def show(found: Quality, console: Console) -> None:
    """Tables for people."""
    console.print(machine_line(found.machine))
    for rows in [*text_rows(found).values(), writing_rows(found)]:
        if not rows:
            continue
        table = Table(*map(escape, rows[0]))
        for row in rows[1:]:
            table.add_row(*(escape(cell.replace("**", "")) for cell in row))
        console.print(table)


def save(found: Quality) -> Quality:
    """Keep the results beside those of other parts on the same machine with the same options."""
    if page.GATES.exists():
        before = Quality.model_validate_json(page.GATES.read_text(encoding="utf-8"))
        if (before.machine, before.options) == (found.machine, found.options):
            both = {**before.texts, **found.texts}
            found = found.model_copy(
                update={
                    "texts": {name: both[name] for name in [*SETS, PROSE] if name in both},
                    "writing": found.writing or before.writing,
                }
            )
    page.GATES.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    page.write()
    return found


def main() -> None:
    """Measure, print, keep."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    found = measure(options, Console(stderr=True))
    show(found, Console(width=None if sys.stdout.isatty() else _WIDTH))
    if options.save:
        found = save(found)
    print(found.model_dump_json())


if __name__ == "__main__":
    main()
