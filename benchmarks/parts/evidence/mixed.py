"""The mixed workload: every set counts alike, whatever the number of its questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from packfuse.evaluation.reports.intervals import LEVEL, RESAMPLES, Figure

from .systems import SYSTEMS, TRIO

Lines = dict[str, dict[str, Any]]
"""Answers of one system to one set, by item."""
Pairs = NDArray[np.float64]
"""Values and units of questions, `[n, 2]`; the figure is the sum of values over that of units."""
FIGURES = ("accuracy", "bits_per_byte")


def value(line: Mapping[str, Any], figure: str) -> tuple[float, float] | None:
    """A line's part of a figure, and its unit: one question, or the bytes that were scored."""
    if figure == "accuracy":
        return None if line.get("right") is None else (float(line["right"]), 1.0)
    return (line["nats"] / math.log(2), line["bytes"]) if line.get("bytes") else None


def mixed(sets: Mapping[str, Mapping[str, Lines]], figure: str, seed: int) -> dict[str, Any]:
    """The mean over sets of a figure, by system, and its difference from the best single member.

    The best single member is the one with the best mean over all sets. The oracle takes the best
    member of each set. A system counts if it answered every set; systems are compared on the
    questions that it and all members answered.

    Args:
        sets: By set and system, the answers by item.
        figure: "accuracy" or "bits_per_byte".
        seed: Seed of the bootstrap, which resamples the questions of each set.
    """
    own = _filled({name: known for name, known in sets.items() if _has(known, figure)})
    alone = {member: _strata(own, member, figure) for member in TRIO}
    if not own or not all(alone.values()):
        return {}
    sign = -1 if figure == "accuracy" else 1
    best = min(TRIO, key=lambda member: sign * _mean(alone[member]))
    rows: dict[str, Any] = {}
    for system in SYSTEMS:
        if strata := _strata(own, system, figure):
            base = _strata(own, best, figure, also=system)
            rows[system] = _row(strata, None if system == best else base, seed)
    rates = [{member: sign * rate(alone[member][at]) for member in TRIO} for at in range(len(own))]
    by_set = [min(found, key=found.__getitem__) for found in rates]
    oracle = [alone[member][at] for at, member in enumerate(by_set)]
    rows["oracle"] = _row(oracle, alone[best], seed)
    return {
        "sets": {name: len(alone[best][at]) for at, name in enumerate(own)},
        "best": best,
        "best_of_set": dict(zip(own, by_set, strict=True)),
        "systems": rows,
    }


def _has(known: Mapping[str, Lines], figure: str) -> bool:
    lines = next(iter(known.values()), {})
    return any(value(line, figure) for line in lines.values())


def _filled(sets: Mapping[str, Mapping[str, Lines]]) -> dict[str, Mapping[str, Lines]]:
    """The answers by set; those of the pack as shipped where a calibrated pack has none."""
    fitted = [
        s for s in SYSTEMS if SYSTEMS[s].calibrated and any(s in own for own in sets.values())
    ]
    return {
        name: {**dict.fromkeys(fitted, own.get("default", {})), **own} for name, own in sets.items()
    }


def _strata(
    sets: Mapping[str, Mapping[str, Lines]], system: str, figure: str, also: str | None = None
) -> list[Pairs]:
    """By set, the values of a system on what it, all members and `also` answered; [] if none."""
    found: list[Pairs] = []
    for known in sets.values():
        needed = [system, *TRIO, *([also] if also else [])]
        if not all(name in known for name in needed):
            return []
        items = [item for item in known[TRIO[0]] if all(item in known[n] for n in needed)]
        pairs = [pair for item in items if (pair := value(known[system][item], figure))]
        if not pairs:
            return []
        found.append(np.array(pairs, float))
    return found


def rate(pairs: Pairs) -> float:
    """The figure of one set."""
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


def _mean(strata: Sequence[Pairs]) -> float:
    return float(np.mean([rate(pairs) for pairs in strata]))


def _row(strata: list[Pairs], base: list[Pairs] | None, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = stratified(strata, seed).model_dump()
    if base is not None:
        row["against"] = stratified(strata, seed, base).model_dump()
    return row


def stratified(strata: Sequence[Pairs], seed: int, base: Sequence[Pairs] | None = None) -> Figure:
    """The mean of the sets' figures, minus that of `base`, with its bootstrap interval.

    Questions are resampled within each set, the same ones on both sides.

    Args:
        strata: By set, values and units, `[n, 2]`.
        seed: Of the bootstrap.
        base: The same of another system on the same questions.
    """
    chooser = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for at, pairs in enumerate(strata):
        chosen = chooser.integers(len(pairs), size=(RESAMPLES, len(pairs)))
        total += _rates(pairs, chosen)
        if base is not None:
            total -= _rates(base[at], chosen)
    low, high = np.quantile(total / len(strata), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = _mean(strata) - (_mean(base) if base is not None else 0.0)
    return Figure(value=found, low=float(low), high=float(high))


def _rates(pairs: Pairs, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    top, bottom = pairs[:, 0][chosen].sum(1), pairs[:, 1][chosen].sum(1)
    rates: NDArray[np.float64] = top / bottom
    return rates
