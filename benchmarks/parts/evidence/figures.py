"""Figures with intervals from the journal of `benchmarks/evidence.py`; no model is needed."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.intervals import Figure, difference, ratio
from packfuse.evaluation.reports.selection import only_right, questions_needed, selection

from .kept import Known
from .mixed import FIGURES, Lines, mixed, value
from .sets import SETS
from .systems import SYSTEMS, TRIO

PACK = "default"
FEWEST = 20
"""Fewest answers of a system of which figures are shown."""


class Answers:
    """What the journal holds, by set and system.

    Attributes:
        known: Answers by (set, system), of the system as it was asked last.
        machine: The machine and the versions of the last run.
    """

    def __init__(self, path: Path, kept: Known | None = None) -> None:
        """Read the journal; a line that a running process has not finished is left out.

        `kept` are figures of earlier answers.
        """
        self.known: dict[tuple[str, str], Lines] = {at: {**own} for at, own in (kept or {}).items()}
        self.machine: dict[str, Any] = {}
        under = {at: next(iter(own.values()))["under"] for at, own in self.known.items()}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for raw in text[: text.rfind("\n") + 1].splitlines():
            _, line = json.loads(raw)
            if "machine" in line:
                self.machine = line["machine"]
                continue
            at = line["set"], line["system"]
            if under.setdefault(at, line["under"]) != line["under"]:
                under[at] = line["under"]
                self.known.pop(at, None)
            self.known.setdefault(at, {})[line["item"]] = line

    def keep_only(self, name: str, items: Container[str]) -> None:
        """Forget answers to what is not asked in a set any more."""
        for at in [at for at in self.known if at[0] == name]:
            left = {item: line for item, line in self.known.pop(at).items() if item in items}
            if left:
                self.known[at] = left

    def of(self, name: str) -> dict[str, Lines]:
        """The systems that have answered enough of a set; what one could not read is left out."""
        found = {
            system: {
                item: line
                for item, line in self.known[name, system].items()
                if "unread" not in line
            }
            for system in SYSTEMS
            if (name, system) in self.known
        }
        return {system: lines for system, lines in found.items() if len(lines) >= FEWEST}


def report(answers: Answers, seed: int, shipped: Answers | None = None) -> dict[str, Any]:
    """All figures of what is known.

    Args:
        answers: What the figures are of.
        seed: Of the intervals.
        shipped: Answers of members that compute as they ship, with which these are compared.
    """
    sets = {name: found for name in SETS if (found := answers.of(name))}
    return {
        "machine": answers.machine,
        "members": list(TRIO),
        "systems": {
            name: {"title": own.title, "members": own.members, "settings": own.settings}
            for name, own in SYSTEMS.items()
        },
        "sets": {name: _set(name, known, seed) for name, known in sets.items()},
        "mixed": {figure: mixed(sets, figure, seed) for figure in FIGURES},
        "bfloat16": _compared(answers, shipped, seed) if shipped else {},
    }


def _compared(answers: Answers, shipped: Answers, seed: int) -> dict[str, Any]:
    """By set and system, members in bfloat16 minus members as they ship, on the same questions."""
    found: dict[str, Any] = {}
    for name in SETS:
        own, other = answers.of(name), shipped.of(name)
        for system in (s for s in SYSTEMS if s in own and s in other):
            row: dict[str, Any] = {"questions": sum(item in other[system] for item in own[system])}
            for figure in FIGURES:
                if one := minus(own[system], other[system], figure, seed):
                    row[figure] = one.model_dump()
            found.setdefault(name, {})[system] = row
    return found


def _set(name: str, known: Mapping[str, Lines], seed: int) -> dict[str, Any]:
    best = {figure: _best(known, TRIO, figure) for figure in FIGURES}
    return {
        "title": SETS[name].title,
        "how": SETS[name].how,
        "questions": max(map(len, known.values())),
        "best": {figure: member for figure, member in best.items() if member},
        "systems": {
            system: {
                **_row(known, system, seed),
                "cpu": _mean([line.get("cpu") for line in lines.values()]),
                "member_tokens": _mean([line.get("member_tokens") for line in lines.values()]),
            }
            for system, lines in known.items()
        },
        "ceiling": _ceiling(known, best["accuracy"], seed),
        "equal_compute": _equal_compute(known, best["accuracy"], seed),
    }


def _row(known: Mapping[str, Lines], system: str, seed: int) -> dict[str, Any]:
    """A system's figures, and their differences from the best of its own members."""
    row: dict[str, Any] = {"questions": len(known[system]), "against": {}}
    for figure in FIGURES:
        own = [pair for line in known[system].values() if (pair := value(line, figure))]
        if not own:
            continue
        tops, bottoms = zip(*own, strict=True)
        row[figure] = ratio(tops, bottoms, seed).model_dump()
        best = _best(known, SYSTEMS[system].members if system not in TRIO else TRIO, figure)
        if best and best != system:
            found = minus(known[system], known[best], figure, seed)
            row["against"][figure] = found and {"best": best, **found.model_dump()}
    weights = [line["weights"] for line in known[system].values() if line.get("weights")]
    if len(SYSTEMS[system].members) > 1 and weights:
        row["weights"] = {n: _mean([w.get(n, 0.0) for w in weights]) for n in weights[0]}
    return row


def minus(one: Lines, other: Lines, figure: str, seed: int) -> Figure | None:
    """One system minus another on the questions that both answered."""
    pairs = [
        (own, base)
        for item in one
        if item in other
        and (own := value(one[item], figure))
        and (base := value(other[item], figure))
    ]
    if len(pairs) < FEWEST:
        return None
    # If the systems scored other bytes of a text, the first one's loss is scaled to the other's.
    left = [own[0] * base[1] / own[1] for own, base in pairs]
    return difference(left, [base[0] for _, base in pairs], [base[1] for _, base in pairs], seed)


def _best(known: Mapping[str, Lines], members: Sequence[str], figure: str) -> str | None:
    """The best of these members on the questions that all of them answered."""
    if not all(member in known for member in members):
        return None
    common = [item for item in known[members[0]] if all(item in known[m] for m in members)]
    totals: dict[str, float] = {}
    for member in members:
        found = [pair for item in common if (pair := value(known[member][item], figure))]
        if not found:
            return None
        totals[member] = sum(v for v, _ in found) / sum(unit for _, unit in found)
    sign = -1 if figure == "accuracy" else 1
    return min(totals, key=lambda member: sign * totals[member])


def _ceiling(known: Mapping[str, Lines], best: str | None, seed: int) -> dict[str, Any] | None:
    """What choosing among the members' answers could reach, and what only the pack gets right."""
    if best is None or PACK not in known:
        return None
    members = [_outcomes(known[member]) for member in TRIO]
    found, own = selection(members, seed), _outcomes(known[PACK])
    only = only_right(own, members, seed)
    if found is None or only is None:
        return None
    base = _outcomes(known[best])
    grades = [float(own[q].right or 0) - float(base[q].right or 0) for q in own if q in base]
    return {
        "questions": sum(all(question in one for one in members) for question in own),
        **found.model_dump(),
        "only_pack": only.model_dump(),
        "needed": questions_needed(grades),
    }


def _outcomes(lines: Lines) -> dict[Question, Outcome]:
    return {Question(item, ""): Outcome(right=line.get("right")) for item, line in lines.items()}


def _equal_compute(
    known: Mapping[str, Lines], best: str | None, seed: int
) -> dict[str, Any] | None:
    """The pack minus the vote of the best member's samples."""
    voted = f"vote {best}"
    if PACK not in known or voted not in known:
        return None
    found = minus(known[PACK], known[voted], "accuracy", seed)
    common = sum(item in known[voted] for item in known[PACK])
    return {"system": voted, "questions": common, **found.model_dump()} if found else None


def _mean(found: Sequence[float | None]) -> float | None:
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None
