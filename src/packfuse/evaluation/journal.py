"""A file that remembers results by key, line by line, so that an interruption loses nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from packfuse.errors import DataError

_BEGIN = b'["'
"""How every entry begins: what was cut off is told from what is something else."""


class Journal:
    """Plain JSON values by key, in one file of JSON lines that only grows.

    Example:
        >>> with Journal(Path(getfixture("tmp_path")) / "journal.jsonl") as journal:
        ...     journal.add(digest("a", "b"), {"right": True})
        ...     journal.get(digest("a", "b"))
        {'right': True}
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was cut off is dropped.

        Raises:
            DataError: if the file cannot be read or written, or holds something else.
        """
        self.path = path
        self._known: dict[str, Any] = {}
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
            self._known[entry[0]] = entry[1]

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{self.path}, line {number}: not an entry of a journal",
            hint="delete the file, or name another folder",
        )

    def __enter__(self) -> Journal:
        """Itself."""
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
        """The value kept under a key, or None."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> None:
        """Keep a value; it is on disk when this returns."""
        line = json.dumps([key, value], ensure_ascii=False)
        self._file.write(line.encode(errors="surrogatepass") + b"\n")
        self._file.flush()
        self._known[key] = value


def digest(*parts: str) -> str:
    """A key that stands for all of these texts."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]
