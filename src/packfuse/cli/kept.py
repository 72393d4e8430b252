"""What packfuse keeps in the user's cache folder: what it is, how large, and how to remove it."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from packfuse.errors import ConfigError, DataError
from packfuse.paths import cache_root
from packfuse.registry import suggest

KINDS = {
    "starter": "models of the starter packs; downloaded again when they are needed",
    "gguf": "GGUF files as float weights, for transformers; made again in about a minute",
    "alignments": "maps between two vocabularies; made again in seconds",
    "skill": "how well members answer chats; measured again in seconds",
    "other": "files of other versions of packfuse",
}
"""Kinds of what is kept, in the order in which they are shown, and what each is."""


class Kept(BaseModel):
    """One thing that is kept.

    Attributes:
        kind: Its kind.
        path: Its file or folder.
        nbytes: Its size on disk.
        changed: Time of its last change, in seconds since 1970.
        source: The GGUF file whose copy it is, where that is known.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    path: Path
    source: str = ""
    nbytes: int
    changed: float


def kept(kinds: Sequence[str] = ()) -> list[Kept]:
    """What is kept, by kind and then by name.

    Args:
        kinds: Kinds that are looked at; all without.

    Raises:
        ConfigError: for an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(
            f"nothing of the kind {unknown[0]!r} is kept", hint=suggest(unknown[0], KINDS)
        )
    found = [_measured(kind, path) for kind, path in _paths() if not kinds or kind in kinds]
    return sorted(found, key=lambda one: (list(KINDS).index(one.kind), one.path))


def remove(things: Sequence[Kept]) -> None:
    """Remove what is kept. What another process makes at the moment is left alone.

    Raises:
        DataError: if a process prepares models of the same kind, or something cannot be removed.
    """
    with ExitStack() as locks:
        for folder in sorted(
            {one.path.parent for one in things if one.kind in ("starter", "gguf")}
        ):
            lock = FileLock(folder / ".lock")
            try:
                locks.enter_context(lock.acquire(timeout=0))
            except Timeout as error:
                raise DataError(
                    f"another process prepares models in {folder}", hint="wait until it has ended"
                ) from error
        for one in things:
            try:
                _remove(one.path)
            except OSError as error:
                raise DataError(f"cannot remove {one.path}: {error.strerror}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _paths() -> Iterator[tuple[str, Path]]:
    """Every file or folder that is kept, with its kind."""
    root = cache_root()
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.name not in KINDS or not folder.is_dir():
            yield "other", folder
            continue
        for path in folder.iterdir():
            if path.name != ".lock":
                yield folder.name, path


def _measured(kind: str, path: Path) -> Kept:
    """What is kept at a path; files that vanish meanwhile count as empty."""
    files = [path] if not path.is_dir() or path.is_symlink() else [path, *path.rglob("*")]
    found = []
    for file in files:
        try:
            found.append(file.lstat())
        except FileNotFoundError:
            continue
    nbytes = sum(one.st_size for one in found if not stat.S_ISDIR(one.st_mode))
    return Kept(
        kind=kind,
        path=path,
        source=_source(path) if kind == "gguf" else "",
        nbytes=nbytes,
        changed=max((one.st_mtime for one in found), default=0.0),
    )


def _source(folder: Path) -> str:
    """The GGUF file whose copy a folder is; copies of older versions do not say."""
    try:
        return str(json.loads((folder / "packfuse.json").read_bytes())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
