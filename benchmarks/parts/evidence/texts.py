"""Passages of Python source and of prose, from what every installation of Python carries."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

LENGTH = 480
"""Characters of a passage; the second half is scored."""


def python_source(count: int, seed: int) -> list[str]:
    """Passages of the standard library's modules, at most one a file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.glob("*/*.py") if _is_library(path.parent.name))
    return _cut([*sorted(root.glob("*.py")), *files], count, seed)


def _is_library(folder: str) -> bool:
    return folder not in {"site-packages", "dist-packages", "test", "tests", "pydoc_data"}


def prose(count: int, seed: int) -> list[str]:
    """Passages of Python's language reference, none of which overlap."""
    chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    # Several topics share a text.
    found = list(dict.fromkeys(part for name in sorted(topics) for part in _parts(topics[name])))
    chooser.shuffle(found)
    return found[:count]


def _parts(text: str) -> Iterator[str]:
    """Parts of a text that begin with a paragraph."""
    while len(text) >= LENGTH:
        yield text[:LENGTH]
        _, _, text = text[LENGTH:].partition("\n\n")


def _cut(files: list[Path], count: int, seed: int) -> list[str]:
    """One passage of each of `count` files that are long enough, from a random line on."""
    chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    chooser.shuffle(files)
    found: list[str] = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        if len(text) >= 3 * LENGTH:
            start = text.find("\n", chooser.randrange(len(text) - 2 * LENGTH)) + 1
            passage = text[start : start + LENGTH]
            found += [passage] if passage not in found else []
        if len(found) == count:
            break
    return found
