"""What the expert learns from and what it never sees: the Kubernetes Python client, cut in two."""

from __future__ import annotations

import hashlib
import random
import re
import zipfile
from pathlib import Path

from packfuse.paths import cache_root
from packfuse.starter.stages import Stages
from packfuse.starter.wheels import Wheel, fetch

WHEEL = Wheel(
    name="kubernetes",
    version="37.0.1",
    sha256="a313a482361506340b5972cabaf20a7ee16ec8713e73325bf699b783a40464a9",
    size=7_511_310,
    member="kubernetes/client/",
    tag="py2.py3-none-any",
)
HELD_OUT = 10
"""One in this many names is held out."""

_FOLDERS = ("kubernetes/client/models/", "kubernetes/client/api/")
_VERSION = re.compile(r"v\d+(?:(?:alpha|beta)\d+)?_")


def corpus(wheel: Path | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Files to learn from and files held out, by their path in the wheel, in order.

    Files are split by a hash of their name without the API version: the `V1beta1` and the `V1` of
    a class are nearly the same text, and lie on the same side.

    Args:
        wheel: The wheel, if it is on disk already; fetched by its hash otherwise.

    Raises:
        StarterError: if it cannot be fetched, or is not the pinned file.
    """
    if wheel is None or not WHEEL.is_at(wheel):
        with Stages().stage(f"download {WHEEL.name} {WHEEL.version}", WHEEL.size) as report:
            wheel = fetch(WHEEL, cache_root() / "training", report)
    parts: tuple[dict[str, str], dict[str, str]] = {}, {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(_FOLDERS) and not name.endswith("__init__.py"):
                parts[is_held_out(name)][name] = archive.read(name).decode()
    return parts


def is_held_out(name: str) -> bool:
    """Whether a file is kept from training.

    Example:
        >>> is_held_out("kubernetes/client/models/v1_pod.py")
        True
        >>> is_held_out("kubernetes/client/models/v1_pod_spec.py")
        False
    """
    bare = _VERSION.sub("", name.rpartition("/")[2])
    return int(hashlib.sha256(bare.encode()).hexdigest(), 16) % HELD_OUT == 0


def cuts(files: dict[str, str], count: int, length: int, seed: int) -> list[str]:
    """`count` pieces of `length` characters from random places, half classes, half API calls.

    Args:
        files: Texts by path.
        count: How many pieces.
        length: Characters of each.
        seed: Of the choice.
    """
    chooser = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    found = []
    for index in range(count):
        folder = _FOLDERS[index % len(_FOLDERS)]
        texts = [t for name, t in files.items() if name.startswith(folder) and len(t) > length]
        text = chooser.choice(texts)
        start = chooser.randrange(len(text) - length)
        found.append(text[start : start + length])
    return found
