"""A file of results by key, one a line, from which an interrupted evaluation resumes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout

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

        The journal is this object's until it is closed: a lock file beside it says so.

        Raises:
            DataError: if the file cannot be read or written, is not a journal, or is in use.
        """
        self.path = path
        self._entries: dict[str, Any] = {}
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = self._open()
        except Timeout as error:
            raise DataError(
                f"{path} is in use by another evaluation", hint="wait for it, or name another --out"
            ) from error
        except (OSError, ValueError) as error:
            self._lock.release()
            raise self._unusable(error) from error

    def _open(self) -> IO[bytes]:
        """Read the entries; the file, at its end."""
        whole = self.path.read_bytes() if self.path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        self._read(kept)
        if not whole.removeprefix(kept).startswith(_BEGIN[: len(whole) - len(kept)]):
            raise self._foreign(kept.count(b"\n") + 1)
        file: IO[bytes] = self.path.open("r+b" if whole else "wb")
        file.truncate(len(kept))
        file.seek(len(kept))
        return file

    def _unusable(self, error: Exception) -> DataError:
        if isinstance(error, DataError):
            return error
        return DataError(f"cannot use {self.path}: {getattr(error, 'strerror', None) or error}")

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
        """Close the file and release the lock."""
        try:
            self._file.close()
        except OSError as failed:
            raise self._unusable(failed) from failed
        finally:
            self._lock.release()

    def get(self, key: str) -> Any:
        """The value of a key, or None if there is no entry."""
        return self._entries.get(key)

    def add(self, key: str, value: Any) -> None:
        """Append an entry; it is flushed to the file before this returns.

        Raises:
            DataError: if it cannot be written.
        """
        line = json.dumps([key, value], ensure_ascii=False)
        try:
            self._file.write(line.encode(errors="surrogatepass") + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error
        self._entries[key] = value


def digest(*parts: str) -> str:
    """A key for a sequence of texts: the first 128 bits of their SHA-256, as hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:32]
