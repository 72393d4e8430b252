"""A file of results by key, one a line, from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from packfuse.jsonl import GrowingFile


class Journal(GrowingFile):
    """JSON values by key, in one file of JSON lines; see `GrowingFile`.

    Example:
        >>> with Journal(Path(getfixture("tmp_path")) / "journal.jsonl") as journal:
        ...     journal.add(digest("a", "b"), {"right": True})
        ...     journal.get(digest("a", "b"))
        {'right': True}
    """

    begin = b'["'
    kind = "an entry of a journal"

    def __init__(self, path: Path) -> None:
        """Read the existing entries.

        Raises:
            DataError: if the file cannot be read or written, is not a journal, or is in use.
        """
        self._entries: dict[str, Any] = {}
        super().__init__(path)

    def take(self, value: Any) -> bool:
        """See `GrowingFile`."""
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            return False
        self._entries[value[0]] = value[1]
        return True

    def get(self, key: str) -> Any:
        """The value of a key, or None if there is no entry."""
        return self._entries.get(key)

    def add(self, key: str, value: Any) -> None:
        """Append an entry; it is flushed to the file before this returns.

        Raises:
            DataError: if it cannot be written.
        """
        self.append([key, value])
        self._entries[key] = value


def digest(*parts: str) -> str:
    """A key for a sequence of texts: the first 128 bits of their SHA-256, as hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]
