"""Question files in JSON lines; errors name the file, the line and the field."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from packfuse.errors import DataError
from packfuse.jsonl import parse_object
from packfuse.registry import suggest

T = TypeVar("T")

_NAMED = 50
"""Most broken lines that an error names."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one line.

    Attributes:
        data: Values by field.
        where: The file and the line, for error messages.
    """

    data: Mapping[str, Any]
    where: str

    def text(self, name: str) -> str:
        """The value of a field that holds a text.

        Raises:
            DataError: if the field is missing, empty, or not a text.
        """
        value = self._value(name)
        if isinstance(value, str) and value.strip():
            return value
        raise DataError(f"{self.where}: field {name!r} holds {value!r}, not a text")

    def texts(self, name: str) -> list[str]:
        """The value of a field that holds a text or a list of texts.

        Raises:
            DataError: if the field is missing or empty, or contains anything but texts.
        """
        value = self._value(name)
        texts = [value] if isinstance(value, str) else value
        valid = isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts)
        if valid and texts:
            return list(texts)
        raise DataError(f"{self.where}: field {name!r} holds {value!r}, not texts")

    def choice(self) -> tuple[dict[str, str], str] | None:
        """The options of a multiple choice by letter, and the right letter.

        Returns:
            None if fewer than two letters have a text, or the right letter has none.

        Raises:
            DataError: if the fields `A`, `B` or `answer` are missing.
        """
        for letter in "AB":
            self._value(letter)
        options = {
            letter: value.strip()
            for letter in string.ascii_uppercase
            if isinstance(value := self.data.get(letter), str) and value.strip()
        }
        answer = self.text("answer").strip()
        return (options, answer) if len(options) > 1 and answer in options else None

    def _value(self, name: str) -> Any:
        if name not in self.data:
            raise DataError(
                f"{self.where}: there is no field {name!r}", hint=suggest(name, self.data)
            )
        return self.data[name]


def _fields(line: str, where: str) -> Fields:
    """The fields of a line.

    Raises:
        DataError: naming the place, if it is not a JSON object.
    """
    try:
        return Fields(parse_object(line, '{"question": ..., ...}'), where)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error


def read_lines(path: Path, *, whole_only: bool = False) -> Iterator[Fields]:
    """The lines of a file of JSON objects; blank lines are skipped.

    Args:
        path: The file.
        whole_only: Whether broken lines are passed over, unless all are broken.

    Raises:
        DataError: if the file cannot be read or is empty, or a line is not a JSON object.
    """
    broken: DataError | None = None
    found = False
    for where, line in _raw_lines(path):
        try:
            fields = _fields(line, where)
        except DataError as error:
            if not whole_only:
                raise
            broken = broken or error
            continue
        found = True
        yield fields
    if broken and not found:
        raise broken


def read_each(path: Path, read: Callable[[Fields], T]) -> list[T]:
    """What `read` makes of each line.

    Raises:
        DataError: as for `read_lines`; of several broken lines it names the first fifty, and
            says how many there are and what is wrong with the first.
    """
    found: list[T] = []
    broken: list[tuple[str, DataError]] = []
    lines = list(_raw_lines(path))
    for where, line in lines:
        try:
            found.append(read(_fields(line, where)))
        except DataError as error:
            broken.append((where, error))
    if not broken:
        return found
    (_, first), *rest = broken
    if not rest:
        raise first
    numbers = ", ".join(where.rpartition(" ")[2] for where, _ in broken[:_NAMED])
    numbers += ", ..." if len(broken) > _NAMED else ""
    raise DataError(
        f"{first.message} (and {len(rest)} more: {len(broken)} of {len(lines)} lines of {path} are "
        f"broken, {numbers})",
        hint="repair or remove these lines" + (f"; {first.hint}" if first.hint else ""),
    )


def _raw_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line with content, after its place.

    Raises:
        DataError: if the file cannot be read or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot read {path}: {reason}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty", hint="write one JSON object a line")
    for number, line in lines:
        yield f"{path}, line {number}", line
