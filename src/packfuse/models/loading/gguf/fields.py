"""The fields before the weights of a GGUF file, in a fraction of a second.

The package `gguf` makes arrays of every string: 4 to 9 seconds for a vocabulary of 150,000 tokens.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packfuse.errors import LoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""By number of a type, its format in `struct`."""
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) < count:
            raise EOFError
        self._at += count
        return found

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in _FORMATS:
                code = np.dtype(_FORMATS[inner]).newbyteorder("<")
                return np.frombuffer(self.take(count * code.itemsize), code).tolist()
            return [self.value(inner) for _ in range(count)]
        return self.number(_FORMATS[kind])


def gguf_fields(path: Path) -> dict[str, Any]:
    """The fields of a file by name; arrays are lists.

    Raises:
        LoadError: if it cannot be read, is no GGUF file, or ends too early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _fields(path, _Cursor(data))
    except (EOFError, KeyError, ValueError, struct.error, RecursionError) as error:
        raise LoadError(
            f"{path} is no GGUF file, or not a whole one", hint="download or copy it again"
        ) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _fields(path: Path, cursor: _Cursor) -> dict[str, Any]:
    if cursor.take(4) != _MAGIC:
        raise LoadError(f"{path} is no GGUF file", hint="check the path")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise LoadError(f"{path} has version {version} of GGUF, not {_VERSIONS[-1]}")
    cursor.number("Q")
    count = cursor.number("Q")
    found = {}
    for _ in range(count):
        name = cursor.string()
        found[name] = cursor.value(cursor.number("I"))
    return found


def gguf_parts(path: Path, fields: dict[str, Any]) -> list[Path]:
    """The file, or all parts of a split one in order.

    Args:
        path: The file, or the first part.
        fields: Its fields.

    Raises:
        LoadError: for another part than the first, or if parts are missing.
    """
    count = int(fields.get("split.count", 1))
    if count < 2:
        return [path]
    named = _PART.fullmatch(path.name)
    if not named or int(named["count"]) != count:
        raise LoadError(
            f"{path.name} is one of {count} parts, but is not named like one",
            hint=f"name them as in model-00001-of-{count:05}.gguf",
        )
    parts = [
        path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    if int(fields.get("split.no", 0)):
        raise LoadError(f"{path.name} is not the first part", hint=f"name {parts[0].name}")
    if missing := [part.name for part in parts if not part.is_file()]:
        raise LoadError(
            f"{path.name} is one of {count} parts, and {missing[0]} is missing",
            hint="put all parts into one folder",
        )
    return parts


def check_model(fields: dict[str, Any]) -> None:
    """Refuse what is no model, or has a token twice.

    Raises:
        LoadError: naming what it is, or the token.
    """
    kind = fields.get("general.type", "model")
    if kind == "model":
        _check_distinct(fields.get("tokenizer.ggml.tokens", ()))
        return
    base = fields.get("general.base_model.0.name", "its model")
    if kind == "adapter":
        raise LoadError(
            f"it is a LoRA adapter of {base}, and adapters of GGUF files are not supported",
            hint="merge it with llama-export-lora, or load the original model with the adapter",
        )
    raise LoadError(f"it is a GGUF file of the type {kind!r}, not a model")


def _check_distinct(tokens: Sequence[str]) -> None:
    """Refuse two tokens with one spelling: at those, llama.cpp ends the process."""
    if len(set(tokens)) == len(tokens):
        return
    twice = next(token for token, count in Counter(tokens).items() if count > 1)
    raise LoadError(
        f"its tokenizer has the token {twice!r} twice", hint="download or copy it again"
    )
