"""Folders on disk: where packfuse keeps its caches, and how it writes them in one piece."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

CACHE_VARIABLE = "PACKFUSE_CACHE"
_WORK_PREFIX = ".work-"


def cache_root() -> Path:
    """The folder of every packfuse cache; it may not exist yet.

    `PACKFUSE_CACHE` names it; without it, it is `packfuse` where the platform keeps caches
    (`~/.cache/packfuse` on Linux).
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser().absolute()
    return user_cache_path("packfuse", appauthor=False)


@contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that is gone at the end, however the block ends.

    What is whole is moved out of it with `os.replace`, which is atomic within one disk.
    """
    folder = parent / f"{_WORK_PREFIX}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file in one piece: whoever reads it sees the old or the new text."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def remove_leftovers(parent: Path) -> None:
    """Delete the work folders of processes that were killed; the caller holds `parent`'s lock."""
    for folder in parent.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk or a used-up quota.

    Libraries written in Rust (safetensors, tokenizers) give their own exceptions without an
    errno, so their text is read as well.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if mentions_full_disk(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def mentions_full_disk(text: str) -> bool:
    """Whether a message is the system's own text for a full disk."""
    text = text.lower()
    return any(os.strerror(code).lower() in text for code in (errno.ENOSPC, errno.EDQUOT))
