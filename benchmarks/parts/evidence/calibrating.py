"""Fits the weighting `calibrated` to the last questions of every set, which are not asked then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packfuse import Pack
from packfuse.evaluation import Journal
from packfuse.evaluation.calibration.fit import Calibration
from packfuse.evaluation.calibration.run import Calibrator
from packfuse.evaluation.reports.intervals import difference
from packfuse.evaluation.run import run_system
from packfuse.evaluation.systems.choice import singles
from packfuse.evaluation.systems.written import GeneratingSystem
from packfuse.evaluation.tasks.base import Task
from packfuse.weighting.methods import weightings

from .sets import SETS, Item
from .systems import CALIBRATION

FILE = "calibrations.json"
"""By set, the weighting as `pack.yaml` would have it; in the working folder."""
TEXTS = 24
"""Texts that a calibration is fitted to: each has far more tokens than an answer."""


def read(*folders: Path) -> dict[str, Any]:
    """The weightings that were fitted; of several folders, the later one counts."""
    known: dict[str, Any] = {}
    for file in (folder / FILE for folder in folders):
        if file.exists():
            known |= json.loads(file.read_text(encoding="utf-8"))
    return known


def keep(known: Mapping[str, Any], folder: Path) -> None:
    """Write weightings to a folder."""
    (folder / FILE).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def write(pack: Pack, known: Mapping[str, Sequence[Item]], work: Path, seed: int) -> dict[str, Any]:
    """What `packfuse determine` decides for a pack, set by set.

    A set counts if it has twice as many questions as are needed; chats have no answers to fit to.
    Where answers are written, and one member is better than each other one beyond chance, it gets
    all the weight.

    Args:
        pack: The pack as shipped.
        known: All items of the sets, in the order in which they are fitted to.
        work: The working folder.
        seed: Seed of the intervals.
    """
    found: dict[str, Any] = {}
    with Journal(work / "calibration.jsonl") as journal:
        fitting = Calibrator(pack, journal, seed)
        for name, asked in known.items():
            if SETS[name].task is not None and len(asked) >= 2 * CALIBRATION:
                given = asked[-CALIBRATION:]
                most = TEXTS if SETS[name].task.name == "text" else CALIBRATION
                questions = [item.content for item in given[:most]]
                best = chosen(pack, SETS[name].task, questions, journal, seed)
                if best is None:
                    report = fitting.run(questions)
                    found[name] = report.weighting or {"name": fitting.own.name}
                    print(f"{name}: {report.advice}", flush=True)
                else:
                    alone = Calibration.alone(pack.names.index(best), len(pack.names))
                    weighting = alone.weighting(pack.names, fitting.own, len(questions))
                    found[name] = weightings().dump(weighting)
                    print(f"{name}: {best} alone", flush=True)
                keep(read(work) | found, work)
    return found


def chosen(
    pack: Pack, task: Task, questions: Sequence[Any], journal: Journal, seed: int
) -> str | None:
    """The member that writes right answers more often than each other one, beyond chance.

    None without such a member, and for answers that are not written. A fit to right answers says
    little of the answers that a pack writes.
    """
    if not task.generates:
        return None
    right: dict[str, list[float]] = {}
    for own in singles(pack):
        (name,) = own.names
        found = run_system(GeneratingSystem(own, name), task, questions, journal).outcomes[name]
        known = [found.get(question) for question in questions]
        right[name] = [float(bool(one and one.right)) for one in known]
        print(f"  {name}: {sum(right[name]):.0f} of {len(questions)} right", flush=True)
    best = max(right, key=lambda name: sum(right[name]))
    units = [1.0] * len(questions)
    others = [values for name, values in right.items() if name != best]
    ahead = all(difference(right[best], own, units, seed).low > 0 for own in others)
    return best if ahead else None
