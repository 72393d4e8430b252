"""Fits the weighting `calibrated` to the last questions of every set, which are not asked then."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from packfuse import Pack
from packfuse.evaluation import Journal

from .sets import SETS, Item
from .systems import CALIBRATION

FILE = "calibrations.json"
"""By set, the weighting as `pack.yaml` would have it; in the working folder."""


def read(work: Path) -> dict[str, Any]:
    """The weightings that were fitted; none before `write`."""
    file = work / FILE
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def write(pack: Pack, known: Mapping[str, Sequence[Item]], work: Path, seed: int) -> dict[str, Any]:
    """What `packfuse determine` decides for a pack, set by set.

    A set counts if it has twice as many questions as are needed; chats have no answers to fit to.

    Args:
        pack: The pack as shipped.
        known: All items of the sets.
        work: The working folder.
        seed: Seed of the intervals.
    """
    # A part of `determine`, which older versions do not have.
    calibrator = import_module("packfuse.evaluation.calibration.run").Calibrator
    found: dict[str, Any] = {}
    with Journal(work / "calibration.jsonl") as journal:
        fitting = calibrator(pack, journal, seed)
        for name, asked in known.items():
            if SETS[name].task is not None and len(asked) >= 2 * CALIBRATION:
                report = fitting.run([item.content for item in asked[-CALIBRATION:]])
                found[name] = report.weighting or {"name": fitting.own.name}
                print(f"{name}: {report.advice}")
    (work / FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
