"""Vocabulary maps on disk: safetensors, keyed by content, written whole or not at all."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from packfuse.paths import cache_root, write_bytes
from packfuse.text.vocabulary import Vocabulary

FORMAT = "1"
"""Version of the file layout."""

Map = NDArray[np.int64]


def cached_map(
    kind: str, version: int, one: Vocabulary, other: Vocabulary, make: Callable[[], Map]
) -> Map:
    """The map of `kind` between two vocabularies, from the cache or made and kept there.

    The key is the content of both tokenizers and the version of the method; names play no part.
    A broken file is made anew, with a warning; so is one that cannot be read.
    """
    parts = [FORMAT, kind, str(version), one.fingerprint, other.fingerprint]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    path = cache_root() / "alignments" / f"{kind}-{key[:32]}.safetensors"
    try:
        return _load(path, key)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (ValueError, KeyError, SafetensorError) as error:
        warnings.warn(
            f"alignment cache {path} is broken and is rebuilt: {error}", RuntimeWarning, 2
        )
    except OSError as error:
        warnings.warn(f"alignment cache {path} cannot be read: {error}", RuntimeWarning, 2)
    made = make()
    _save(path, key, made)
    return made


def _load(path: Path, key: str) -> Map:
    with safe_open(path, framework="np") as file:
        found = (file.metadata() or {}).get("key")
        if found != key:
            raise ValueError(f"it was made for {found}, not for {key}")
        table: Map = file.get_tensor("map").astype(np.int64)
    return table


def _save(path: Path, key: str, table: Map) -> None:
    """Write the map to the cache; without it, the map is computed again next time."""
    compact = np.ascontiguousarray(table, dtype=np.int32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save({"map": compact}, metadata={"key": key}))
    except OSError as error:
        warnings.warn(f"alignment cache {path} cannot be written: {error}", RuntimeWarning, 2)
