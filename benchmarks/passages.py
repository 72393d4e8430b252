"""Text to measure on: what every Python installation carries, and question files if given."""

from __future__ import annotations

import collections
import difflib
import json
import random
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

LENGTH = 800
"""Characters of a passage."""

_FIELDS = {
    "gsm8k": ("question", "answer"),
    "piqa": ("question", "A"),
    "arc": ("question", "A", "B"),
}


@dataclass(frozen=True)
class Passage:
    """One text and what kind it is."""

    kind: str
    text: str


def passages(seed: int, each: int, data: Path | None) -> list[Passage]:
    """`each` passages of every kind, the same for the same seed.

    Args:
        seed: Of the choice.
        each: Passages of every kind.
        data: A folder of question files in JSON lines (`gsm8k*.jsonl`, `piqa*.jsonl`, ...).
    """
    chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    found = [*_documentation(chooser, each), *_source(chooser, each), *_license(chooser, each)]
    if data:
        found += _questions(chooser, each, data)
    return found


def write_jsonl(path: Path, texts: Sequence[str]) -> None:
    """Write texts as a file that the task `text` reads."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")


def _documentation(chooser: random.Random, each: int) -> Iterator[Passage]:
    long = sorted(name for name, text in topics.items() if len(text) > LENGTH)
    for name in chooser.sample(long, each):
        yield Passage("documentation", topics[name][:LENGTH])


def _source(chooser: random.Random, each: int) -> Iterator[Passage]:
    modules = (textwrap, difflib, collections, json, random)
    for index in range(each):
        text = Path(str(modules[index % len(modules)].__file__)).read_text(encoding="utf-8")
        yield Passage("python", _cut(chooser, text))


def _license(chooser: random.Random, each: int) -> Iterator[Passage]:
    file = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    if file.exists():
        text = file.read_text(encoding="utf-8")
        for _ in range(each):
            yield Passage("license", _cut(chooser, text))


def _cut(chooser: random.Random, text: str) -> str:
    start = text.find("\n", chooser.randrange(max(1, len(text) - 2 * LENGTH))) + 1
    return text[start : start + LENGTH]


def _questions(chooser: random.Random, each: int, data: Path) -> Iterator[Passage]:
    for kind, fields in _FIELDS.items():
        for file in sorted(data.glob(f"{kind}*.jsonl")):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for _ in range(each):
                lines = [" ".join(row[f] for f in fields) for row in chooser.sample(rows, 3)]
                yield Passage(kind, "\n".join(lines)[:LENGTH])
