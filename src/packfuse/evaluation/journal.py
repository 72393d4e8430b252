"""A file of results by key, one a line, from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from packfuse.errors import DataError

_BEGIN = b'["'
"""Start of every entry; it tells a truncated entry from the content of another file."""


class Journal:
    """JSON values by key, in one append-only file of JSON lines.

    Example:
        >>> with Journal(Path(getfixture("tmp_path")) / "journal.jsonl") as journal:
        ...     journal.add(digest("a", "b"), {"right": True})
        ...     journal.get(digest("a", "b"))
        {'right': True}
    """

    def __init__(self, path: Path) -> None:
        """Read the existing entries; a truncated last line is dropped.

        Raises:
            DataError: if the file cannot be read or written, or is not a journal.
        """
        self.path = path
        self._entries: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            kept = whole[: whole.rfind(b"\n") + 1]
            self._read(kept)
            if not whole.removeprefix(kept).startswith(_BEGIN[: len(whole) - len(kept)]):
                raise self._foreign(kept.count(b"\n") + 1)
            self._file: IO[bytes] = path.open("r+b" if whole else "wb")
            self._file.truncate(len(kept))
            self._file.seek(len(kept))
        except OSError as error:
            raise DataError(f"cannot use {path}: {error.strerror}") from error

    def _read(self, kept: bytes) -> None:
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise self._foreign(number) from error
            if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
                raise self._foreign(number)
            self._entries[entry[0]] = entry[1]

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{self.path}, line {number}: not an entry of a journal",
            hint="delete the file, or name another folder",
        )

    def __enter__(self) -> Journal:
        """The journal itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def get(self, key: str) -> Any:
        """The value of a key, or None if there is no entry."""
        return self._entries.get(key)

    def add(self, key: str, value: Any) -> None:
        """Append an entry; it is flushed to the file before this returns."""
        line = json.dumps([key, value], ensure_ascii=False)
        self._file.write(line.encode(errors="surrogatepass") + b"\n")
        self._file.flush()
        self._entries[key] = value


def digest(*parts: str) -> str:
    """A key for a sequence of texts: the first 128 bits of their SHA-256, as hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]
