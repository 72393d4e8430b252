"""Question files in JSON lines; errors name the file, the line and the field."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packfuse.errors import DataError
from packfuse.jsonl import parse_object
from packfuse.registry import suggest


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


def read_lines(path: Path, broken: list[str] | None = None) -> Iterator[Fields]:
    """The lines of a file of JSON objects; blank lines are skipped.

    Args:
        path: The file.
        broken: Where the errors of lines that are no JSON objects are added, so that the other
            lines can be used; None to raise them.

    Raises:
        DataError: if the file cannot be read or is empty, or a line is not a JSON object.
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
        where = f"{path}, line {number}"
        try:
            data = parse_object(line, '{"question": ..., ...}')
        except DataError as error:
            named = DataError(f"{where}: {error.message}", hint=error.hint)
            if broken is None:
                raise named from error
            broken.append(str(named))
        else:
            yield Fields(data, where)
