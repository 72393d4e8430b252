"""Is a pack worth it? Members, packs and published methods on the same questions and texts.

    python benchmarks/evidence.py --data FOLDER --work FOLDER        # measure; continues
    python benchmarks/evidence.py ... --calibrate                    # before: fit `calibrated`
    python benchmarks/evidence.py --work FOLDER --report [--save]    # what has been reached

Questions come from a folder of JSON lines (`piqa*.jsonl`, `arc*.jsonl`, `mmlu*.jsonl`,
`triviaqa*.jsonl`, `gsm8k*.jsonl`), prompts from benchmarks/data, texts from Python itself. Sets are
asked in rounds of growing size, so that there are figures of all of them early. Every answer is
kept in --work as soon as it is known: a run that was killed goes on where it stopped. `--report`
may run meanwhile and needs no model; its last line is one JSON document, and `--save` keeps it in
benchmarks/measured and writes the tables of docs/evidence.md and README.md.

Settings that were fitted to questions (`calibrated`) come from calibrations.json in --work: by set,
a weighting as in pack.yaml. `--calibrate` writes it, as `packfuse determine` would, from the last
40 questions of each set, which they are not asked. Where answers are written, and one member is
better than each other one beyond chance, it answers alone.

Members compute in bfloat16, which takes half the time. `--shipped` lets them compute as they ship;
the report compares the two on the questions that both answered.

Figures of single answers are kept in benchmarks/measured/evidence, without questions and answers,
and are not asked again in another --work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tables
from common import MEASURED, machine
from parts.evidence import calibrating, kept
from parts.evidence.answering import Asking
from parts.evidence.figures import Answers, report
from parts.evidence.picture import draw
from parts.evidence.sets import SETS, Item, rounds
from parts.evidence.systems import SYSTEMS, Packs

import packfuse
from packfuse.evaluation import Journal
from packfuse.evaluation.journal import digest

ROOT = Path(__file__).parents[1]
KEPT = MEASURED / "evidence"
"""Figures of single answers, which are not asked again."""


def known(options: argparse.Namespace, *, shipped: bool) -> Answers:
    """All answers of members that compute in bfloat16, or as they ship."""
    folder = KEPT / "shipped" if shipped else KEPT
    found = Answers(options.work / _file(shipped), kept.read(folder))
    for name, own in SETS.items():
        # Chats come with the project, and their wording is a part of the item.
        if own.task is None:
            asked = own.find(None, options.seed) or []
            found.keep_only(name, {item.key for item in asked})
    return found


def _file(shipped: bool) -> str:
    return "shipped.jsonl" if shipped else "answers.jsonl"


def measure(options: argparse.Namespace) -> None:
    """Ask all systems, in rounds."""
    # What is scored is quick: figures of these sets come first.
    order = sorted(options.set or SETS, key=lambda name: SETS[name].written)
    found = {name: SETS[name].find(options.data, options.seed) for name in order}
    sets = {name: asked for name, asked in found.items() if asked}
    for name in found.keys() - sets:
        print(f"{name}: no questions", file=sys.stderr)
    with Journal(options.work / _file(options.shipped)) as journal:
        run = {"machine": {"packfuse": packfuse.__version__, **machine()}}
        journal.add(digest(json.dumps(run)), run)
        packs = Packs.starter(
            calibrating.read(MEASURED, options.work), bfloat16=not options.shipped
        )
        if options.calibrate:
            calibrating.write(packs.of("default", ""), sets, options.work, options.seed)
            return
        asking = Asking(packs, journal, known(options, shipped=options.shipped).known)
        most = {name: len(asked[: options.limit]) for name, asked in sets.items()}
        sizes = sorted({size for count in most.values() for size in rounds(count)})
        for size, first in ((size, first) for size in sizes for first in (True, False)):
            for name, asked in sets.items():
                _ask_set(
                    asking, name, asked, min(size, most[name]), options.system or _systems(first)
                )


def _systems(first: bool) -> list[str]:
    return [name for name, own in SYSTEMS.items() if own.first == first]


def _ask_set(
    asking: Asking, name: str, asked: Sequence[Item], size: int, systems: Sequence[str]
) -> None:
    """Ask the first `size` questions; systems that are scored share forward passes."""
    sizes: dict[int, list[str]] = {}
    for system in systems:
        most = min(size, SYSTEMS[system].asked(name, len(asked)))
        if asking.packs.able(system, name) and most > 0:
            sizes.setdefault(most, []).append(system)
    for most, group in sizes.items():
        for own in [[s] for s in group] if SETS[name].written else [group]:
            began = time.perf_counter()
            count = asking.ask(name, asked[:most], own)
            told = (
                f"{name}, {most}: {', '.join(own)}: {count} in {time.perf_counter() - began:.0f} s"
            )
            if count:
                print(time.strftime("%H:%M:%S"), told, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, or report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of question files")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "results" / "evidence")
    parser.add_argument("--set", action="append", choices=SETS, help="a set; repeatable")
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="repeatable")
    parser.add_argument("--limit", type=int, help="most questions that a system is asked of a set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="few questions: does it run?")
    parser.add_argument("--calibrate", action="store_true", help="fit `calibrated`, and end")
    parser.add_argument(
        "--shipped", action="store_true", help="members compute as they ship, in twice the time"
    )
    parser.add_argument(
        "--report", action="store_true", help="figures of the answers that are there"
    )
    parser.add_argument("--save", action="store_true", help="keep the figures, write the pages")
    options = parser.parse_args()
    if options.small:
        options.limit, options.set = options.limit or 20, options.set or ["prose"]
        options.system = options.system or ["gemma-3-270m", "SmolLM2-135M-Instruct"]
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.report:
        measure(options)
    answers, shipped = known(options, shipped=False), known(options, shipped=True)
    results = report(answers, options.seed, shipped)
    if options.save:
        kept.write(answers.known, KEPT)
        kept.write(shipped.known, KEPT / "shipped")
        calibrating.keep(calibrating.read(MEASURED, options.work), MEASURED)
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (MEASURED / "evidence.json").write_text(text, encoding="utf-8")
        draw(results, ROOT / "docs" / "evidence.png")
        tables.main()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
