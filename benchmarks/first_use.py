"""What a new user meets: about 100 first prompts, answered by the members alone and by the pack.

    python benchmarks/first_use.py [--model PATH ...] [--part NAME] [--small] [--save]

Five parts: chat, instructions with a form, code, answers from passages, tool calls and JSON. Every
answer is judged by rules (benchmarks/parts/judge.py). Nothing is set but the most tokens of an
answer: everything else is what ships. Answers are kept in --work, so that an interrupted run goes
on where it stopped. The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import tables
from common import MEASURED, machine, progress
from parts.chats import answer
from parts.prompts import TOKENS, items

from packfuse import Pack
from packfuse.evaluation.journal import Journal, digest
from packfuse.evaluation.reports.intervals import difference
from packfuse.registry import parse_spec
from packfuse.starter.sources import DEFAULT, LINEUPS

TOGETHER = 8
"""Calls at the same time, which are answered as batches."""
WEIGHTINGS = ("uniform", "top1")


def run(
    pack: Pack,
    settings: Mapping[str, Any],
    part: str,
    asked: Sequence[dict[str, Any]],
    kept: Journal,
) -> list[dict[str, Any]]:
    """The judged answers of one system to one part, in the order of the items."""
    own = {"pack": pack.identity, "settings": settings, "tokens": TOKENS[part]}
    keys = [_key({**own, "item": item}) for item in asked]
    one_at_a_time = Lock()

    def ask(at: int) -> None:
        line = answer(pack, asked[at], TOKENS[part], settings)
        with one_at_a_time:
            kept.add(keys[at], {"id": f"{part}/{asked[at]['id']}", **line})

    with ThreadPoolExecutor(TOGETHER) as threads:
        list(threads.map(ask, [at for at, key in enumerate(keys) if kept.get(key) is None]))
    return [kept.get(key) for key in keys]


def _key(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True, default=str))


def systems(pack: Pack) -> Iterator[tuple[str, Pack, dict[str, Any]]]:
    """Every member alone, the pack as it ships, and the pack under other weightings."""
    for member in pack.members:
        yield member.name, Pack([member], progress=False), {}
    if len(pack.members) > 1:
        yield "pack", pack, {}
        for weighting in WEIGHTINGS:
            yield weighting, pack, {"weighting": weighting}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Counts by system and part, and the difference of each pack from the best member."""
    pack = _pack(options)
    parts = {part: items(part)[: options.limit] for part in options.part or TOKENS}
    lines: dict[str, list[dict[str, Any]]] = {}
    step = progress("first use")
    all_systems = [one for one in systems(pack) if not options.system or one[0] in options.system]
    all_systems += [(s, pack, _settings(s, pack)) for s in options.system or () if ":" in s]
    with Journal(options.work / "answers.jsonl") as kept:
        for number, (name, own, settings) in enumerate(all_systems, 1):
            found = [run(own, settings, part, asked, kept) for part, asked in parts.items()]
            lines[name] = [line for part in found for line in part]
            step(number, len(all_systems))
    return {"members": pack.names, "systems": summary(lines, pack.names)}


def _settings(text: str, pack: Pack) -> dict[str, Any]:
    """The settings of a system that is given as text."""
    kind, _, rest = text.partition(":")
    if kind != "weights":
        return {"weighting": parse_spec(text)}
    return {"weights": dict(zip(pack.names, map(float, rest.split(",")), strict=True))}


def _pack(options: argparse.Namespace) -> Pack:
    loading = {"dtype": options.dtype} if options.dtype else {}
    if options.model:
        return Pack.from_pretrained(options.model, progress=False, **loading)
    return Pack.starter(options.starter, progress=False, **loading)


def summary(lines: Mapping[str, list[dict[str, Any]]], members: Sequence[str]) -> dict[str, Any]:
    """By system: right answers by part, turns that leaked, loops, and the paired difference."""
    right = {name: [all(line["rules"].values()) for line in own] for name, own in lines.items()}
    alone = [name for name in members if name in right] or list(right)
    best = max(alone, key=lambda name: sum(right[name]))
    found: dict[str, Any] = {}
    for name, own in lines.items():
        parts: dict[str, list[int]] = {}
        for line, good in zip(own, right[name], strict=True):
            count = parts.setdefault(line["id"].partition("/")[0], [0, 0])
            count[0] += good
            count[1] += 1
        ones = [1.0] * len(own)
        against = difference(right[name], right[best], ones, 0)
        found[name] = {
            "parts": parts,
            "right": sum(right[name]),
            "asked": len(own),
            "turns": sum(not line["rules"]["turn"] for line in own),
            "loops": sum(not line["rules"]["loop"] for line in own),
            "against": None if name == best else {"best": best, **against.model_dump()},
            "seconds": round(sum(line["seconds"] for line in own), 1),
        }
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", action="append", help="a member; repeatable; default: starter")
    parser.add_argument("--starter", default=DEFAULT, choices=LINEUPS, help="a starter pack")
    parser.add_argument("--dtype", help="type of the weights; default: what ships")
    parser.add_argument(
        "--system",
        action="append",
        help='a member\'s name, "pack", "uniform", "top1", another weighting with parameters,\n'
        '"exact:chat=64", or "weights:0.8,0.2"; repeatable; default: the first of these',
    )
    parser.add_argument("--part", action="append", choices=TOKENS, help="a part; repeatable")
    parser.add_argument("--limit", type=int, help="most items of a part")
    parser.add_argument("--work", type=Path, default=MEASURED.parent / "results" / "first_use")
    parser.add_argument("--small", action="store_true", help="one item a part: does it run?")
    parser.add_argument("--save", action="store_true", help="keep the results, write the tables")
    options = parser.parse_args()
    if options.small:
        options.limit = 1
    options.work.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), **measure(options)}
    if options.save and not options.small:
        text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
        (MEASURED / "first_use.json").write_text(text, encoding="utf-8")
        tables.main()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
