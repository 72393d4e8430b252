"""What stands before the weights of a GGUF file, read in a fraction of a second.

The package `gguf` makes arrays of every string: 4 to 9 seconds for a vocabulary of 150,000 tokens.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from packfuse.errors import LoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""By number of a type, its format in `struct`."""
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFHeader(NamedTuple):
    """What stands before the weights of a GGUF file.

    Attributes:
        fields: The fields by name; arrays are lists.
        tensors: Number of elements of each tensor, and the number of its type in ggml.
    """

    fields: dict[str, Any]
    tensors: list[tuple[int, int]]

    @property
    def parameters(self) -> int:
        """Number of parameters in this file."""
        return sum(elements for elements, _ in self.tensors)

    @property
    def nbytes(self) -> int | None:
        """Bytes of the weights as they are in this file; None for a type that is not known."""
        try:
            return sum(_nbytes(elements, kind) for elements, kind in self.tensors)
        except ValueError:
            return None


def main_type(headers: Sequence[GGUFHeader]) -> str:
    """The type of most weights in all parts of a file, as in "Q4_K"; "?" for an unknown one."""
    counts: Counter[int] = Counter()
    for header in headers:
        for elements, kind in header.tensors:
            counts[kind] += elements
    ((kind, _),) = counts.most_common(1) or [(-1, 0)]
    known = {one.value: one.name for one in GGMLQuantizationType}
    return known.get(kind, "?")


def _nbytes(elements: int, kind: int) -> int:
    """Bytes of a tensor, which is stored in blocks."""
    each, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return elements // each * size


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


def gguf_header(path: Path) -> GGUFHeader:
    """What stands before the weights of a file.

    Raises:
        LoadError: if it cannot be read, is no GGUF file, or ends too early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _header(path, _Cursor(data))
    except (EOFError, KeyError, ValueError, struct.error, RecursionError) as error:
        raise LoadError(
            f"{path} is no GGUF file, or not a whole one", hint="download or copy it again"
        ) from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _header(path: Path, cursor: _Cursor) -> GGUFHeader:
    if cursor.take(4) != _MAGIC:
        raise LoadError(f"{path} is no GGUF file", hint="check the path")
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise LoadError(f"{path} has version {version} of GGUF, not {_VERSIONS[-1]}")
    tensors, count = cursor.number("Q"), cursor.number("Q")
    fields = {}
    for _ in range(count):
        name = cursor.string()
        fields[name] = cursor.value(cursor.number("I"))
    return GGUFHeader(fields, [_tensor(cursor) for _ in range(tensors)])


def _tensor(cursor: _Cursor) -> tuple[int, int]:
    """Number of elements of the next tensor, and the number of its type."""
    cursor.string()
    shape = [cursor.number("Q") for _ in range(cursor.number("I"))]
    kind = cursor.number("I")
    cursor.number("Q")  # where it begins
    return math.prod(shape), kind


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
