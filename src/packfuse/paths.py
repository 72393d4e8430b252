"""The cache folder, atomic writes, and what the disk has left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from platformdirs import user_cache_path

from packfuse.errors import ConfigError

CACHE_VARIABLE = "PACKFUSE_CACHE"
"""Environment variable with the folder of all caches."""
_WORK_PREFIX = ".work-"


def cache_root() -> Path:
    """The folder of all caches of packfuse; it may not exist yet.

    The environment variable `PACKFUSE_CACHE` sets it. The default is `packfuse` in the user's
    cache folder of the platform (`~/.cache/packfuse` on Linux).
    """
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder).expanduser().absolute()
    return user_cache_path("packfuse", appauthor=False)


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent` that is deleted when the block ends, also by an error.

    Move complete results out of it with `Path.replace`, which is atomic within one file system.
    """
    folder = parent / f"{_WORK_PREFIX}{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees the old or the new content, never a part of it.

    The data goes to a new file in the same folder, which then replaces `path`. Its name is unique
    and it is opened exclusively, so that processes that write the same `path` do not collide.

    Raises:
        OSError: The file cannot be written; `path` is as before, and no other file is left.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file like `write_bytes`.

    Raises:
        OSError: As for `write_bytes`.
    """
    write_bytes(path, text.encode())


def write_named(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that the user named, like `write_bytes`.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        write_bytes(Path(path), data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot write {os.fspath(path)!r}: {reason}",
            hint="name a file in a folder that exists",
        ) from error


def exists(path: Path) -> bool:
    """Whether a path exists; False for what no path can be, such as a name that is too long."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def remove_leftovers(parent: Path) -> None:
    """Delete the work folders that killed processes left in `parent`.

    The caller holds the lock of `parent`, so that no work folder is in use.
    """
    for folder in parent.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """Free bytes on the file system of `folder`, which may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or an error that caused it, reports a full disk or an exhausted quota.

    Libraries written in Rust (safetensors, tokenizers) raise exceptions without an errno, so the
    messages are searched as well.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if mentions_full_disk(str(current)):
            return True
        current = current.__cause__ or current.__context__
    return False


def mentions_full_disk(text: str) -> bool:
    """Whether a message contains the operating system's text for a full disk."""
    text = text.lower()
    return any(os.strerror(code).lower() in text for code in (errno.ENOSPC, errno.EDQUOT))
