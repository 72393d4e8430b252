"""Figures of single answers, kept with the project: no questions, no answers, one file a set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""One answer."""
Known = dict[tuple[str, str], dict[str, Line]]
"""Answers by (set, system), each by item."""
FIGURES = ("right", "nats", "bytes", "cpu", "member_tokens")
"""What is kept of an answer."""


def write(known: Mapping[tuple[str, str], Mapping[str, Line]], folder: Path) -> None:
    """Keep the figures of all answers in a folder.

    A file has the items of a set, and by system a column for each figure, null where it has none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys(of for of, _ in known):
        systems = {system: lines for (of, system), lines in known.items() if of == name}
        items = list(dict.fromkeys(item for lines in systems.values() for item in lines))
        rows: dict[str, Any] = {"items": items}
        rows |= {system: _columns(lines, items) for system, lines in systems.items()}
        text = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        (folder / f"{name}.json").write_text("{\n" + text + "\n}\n", encoding="utf-8")


def read(folder: Path) -> Known:
    """What `write` kept; nothing if there is no folder."""
    found: Known = {}
    for file in sorted(folder.glob("*.json")):
        rows = json.loads(file.read_text(encoding="utf-8"))
        items = rows.pop("items")
        for system, columns in rows.items():
            own = {"set": file.stem, "system": system, "under": columns.pop("under")}
            asked = columns.pop("asked")
            lines: dict[str, Line] = {}
            for at, item in enumerate(items):
                if asked[at]:
                    figures = {name: column[at] for name, column in columns.items()}
                    given = {name: value for name, value in figures.items() if value is not None}
                    unread = {} if given.keys() - {"cpu"} else {"unread": "no figures"}
                    lines[item] = {**own, "item": item, **given, **unread}
            found[file.stem, system] = lines
    return found


def _columns(lines: Mapping[str, Line], items: list[str]) -> dict[str, Any]:
    """A system's figures; those that no answer has are left out."""
    columns: dict[str, Any] = {"under": next(iter(lines.values()))["under"]}
    columns["asked"] = [int(item in lines) for item in items]
    for name in FIGURES:
        column = [_figure(lines.get(item, {}), name) for item in items]
        if any(value is not None for value in column):
            columns[name] = column
    return columns


def _figure(line: Line, name: str) -> float | int | None:
    value = None if "unread" in line else line.get(name)
    if value is None:
        return None
    return int(value) if value == int(value) else round(value, 5)
