"""Copies of GGUF files as model folders, which load in seconds.

To read a GGUF file means to compute every weight from its quantized form: 40 to 50 seconds of
processor time for half a billion parameters. The copy is made once and kept in the cache folder, as
float32, until the file changes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from packfuse.paths import cache_root, free_bytes, remove_leftovers, work_folder, write_text

FORMAT = 1
"""Version of the conversion; a copy of another version is made again."""

SHARE_OF_DISK = 0.25
"""Largest share of the free disk that a copy may take."""

_GROWTH = 8
"""At most, a float32 weight takes as many times the space of the quantized one."""

_MANIFEST = "packfuse.json"

Loader = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def copy_of(path: Path, load: Loader, *, tokenizer: str | None = None) -> Path | None:
    """The folder of the copy of a GGUF file, made now if it is missing or older than the file.

    Args:
        path: The file.
        tokenizer: Where its tokenizer is, if that is not in the file.
        load: Loads model and tokenizer from the file, with float32 weights on the processor.

    Returns:
        The folder; None if there is no room for it, or if it cannot be written.

    Raises:
        Exception: what `load` raises.

    Warns:
        RuntimeWarning: if it cannot be written.
    """
    root = cache_root() / "gguf"
    named = f"{path.resolve()}\0{tokenizer or ''}"
    folder = root / hashlib.sha256(named.encode()).hexdigest()[:32]
    if _is_current(folder, path):
        return folder
    if path.stat().st_size * _GROWTH > free_bytes(root) * SHARE_OF_DISK:
        return None
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire()
    except OSError as error:
        _not_kept(path, error)
        return None
    try:
        if not _is_current(folder, path):
            remove_leftovers(root)
            _write(folder, path, *load())
    except OSError as error:
        _not_kept(path, error)
        return None
    finally:
        lock.release()
    return folder


def _write(
    folder: Path, path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with work_folder(folder.parent) as work:
        made = work / "made"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        # `packfuse cache` shows whose copy it is.
        write_text(made / _MANIFEST, json.dumps(_state(path) | {"path": str(path.resolve())}))
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def _is_current(folder: Path, path: Path) -> bool:
    try:
        found = json.loads((folder / _MANIFEST).read_bytes())
        return bool(_state(path).items() <= found.items())
    except (OSError, ValueError, AttributeError):
        return False


def _state(path: Path) -> dict[str, Any]:
    """What changes when the file is written again."""
    found = path.stat()
    return {"format": FORMAT, "size": found.st_size, "changed": found.st_mtime_ns}


def _not_kept(path: Path, error: OSError) -> None:
    warnings.warn(
        f"{path} is converted anew whenever it is loaded: {error.strerror or error}",
        RuntimeWarning,
        stacklevel=4,
    )
