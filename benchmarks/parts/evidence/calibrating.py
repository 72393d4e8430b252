"""Fits the weighting `calibrated` to the last questions of every set, which are not asked then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packfuse import Pack
from packfuse.evaluation import Journal
from packfuse.evaluation.calibration.run import Calibrator

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
                report = fitting.run([item.content for item in given[:most]])
                found[name] = report.weighting or {"name": fitting.own.name}
                print(f"{name}: {report.advice}", flush=True)
                keep(read(work) | found, work)
    return found
