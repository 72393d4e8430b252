"""The expert's corpus: the Kubernetes Python client, split into training and held-out files."""

from __future__ import annotations

import hashlib
import random
import re
import zipfile
from pathlib import Path

from packfuse.paths import cache_root
from packfuse.progress import StageReporter
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
"""One in this many file names is held out."""

_FOLDERS = ("kubernetes/client/models/", "kubernetes/client/api/")
_VERSION = re.compile(r"v\d+(?:(?:alpha|beta)\d+)?_")


def corpus(wheel: Path | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """The training files and the held-out files: texts by their path in the wheel, sorted.

    Files are split by a hash of their name without the API version: the `V1beta1` and the `V1` of
    a class have nearly the same text, and must be in the same part.

    Args:
        wheel: Path of the wheel; a wheel that is missing or not the pinned one is downloaded.

    Raises:
        StarterError: The wheel cannot be downloaded, or the download is not the pinned file.
    """
    if wheel is None or not WHEEL.is_at(wheel):
        label = f"download {WHEEL.name} {WHEEL.version}"
        with StageReporter().stage(label, WHEEL.size) as progress:
            wheel = fetch(WHEEL, cache_root() / "training", progress)
    parts: tuple[dict[str, str], dict[str, str]] = {}, {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(_FOLDERS) and not name.endswith("__init__.py"):
                parts[is_held_out(name)][name] = archive.read(name).decode()
    return parts


def is_held_out(name: str) -> bool:
    """Whether the file is held out of the training.

    Example:
        >>> is_held_out("kubernetes/client/models/v1_pod.py")
        True
        >>> is_held_out("kubernetes/client/models/v1_pod_spec.py")
        False
    """
    unversioned = _VERSION.sub("", name.rpartition("/")[2])
    return int(hashlib.sha256(unversioned.encode()).hexdigest(), 16) % HELD_OUT == 0


def cuts(files: dict[str, str], count: int, length: int, seed: int) -> list[str]:
    """Excerpts from random positions of random files, in turn from classes and from API calls.

    Args:
        files: Texts by path.
        count: Number of excerpts.
        length: Characters of each excerpt.
        seed: Seed of the random choice.
    """
    rng = random.Random(seed)  # noqa: S311 - a choice of texts, no secret
    excerpts = []
    for index in range(count):
        folder = _FOLDERS[index % len(_FOLDERS)]
        texts = [t for name, t in files.items() if name.startswith(folder) and len(t) > length]
        text = rng.choice(texts)
        start = rng.randrange(len(text) - length)
        excerpts.append(text[start : start + length])
    return excerpts
