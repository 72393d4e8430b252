"""Files of JSON lines: one is read line by line, another grows and outlives a killed process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from filelock import FileLock, Timeout

from packfuse.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Lone surrogates: valid in JSON, but not encodable as UTF-8."""


def parse_object(line: str | bytes, example: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Args:
        line: The line; bytes are UTF-8.
        example: What a line may look like, for errors, which do not say which line it is.

    Raises:
        DataError: if it holds anything else, or half a character.
    """
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        data = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError("nested too deeply") from error
    if not isinstance(data, dict):
        raise DataError("not a JSON object", hint=f"write {example}")
    for name, value in data.items():
        if _SURROGATE.search(json.dumps([name, value], ensure_ascii=False)):
            raise DataError(f"field {name!r} holds half a character (a lone surrogate)")
    return data


class GrowingFile:
    """A file of JSON lines to which values are appended.

    It is this object's until it is closed: a lock file beside it says so. A process that is killed
    leaves whole lines, and perhaps a part of one more, which is dropped when the file is opened
    again.

    Attributes:
        path: The file.
        begin: How every line begins: it tells a part of a line from another file's content.
        kind: What a line is called in errors.
        repaired: Whether a part of a line was dropped.
    """

    begin: ClassVar[bytes]
    kind: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            DataError: if the file cannot be read or written, is of another kind, or is in use.
        """
        self.path = path
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._file = self._open()
        except Timeout as error:
            raise DataError(
                f"{path} is in use by another process",
                hint="wait for it, or name another output",
            ) from error
        except (OSError, ValueError) as error:
            self._lock.release()
            raise self._unusable(error) from error

    def take(self, value: Any) -> bool:
        """Called with the value of each line that is there already; to be overridden.

        Returns:
            Whether it can be a line of such a file.
        """
        raise NotImplementedError

    def _open(self) -> IO[bytes]:
        """Read the lines; the file, at its end."""
        whole = self.path.read_bytes() if self.path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                known = self.take(json.loads(line))
            except DataError:
                raise
            except ValueError:
                known = False
            if not known:
                raise self._foreign(number)
        if not whole.removeprefix(kept).startswith(self.begin[: len(whole) - len(kept)]):
            raise self._foreign(kept.count(b"\n") + 1)
        self.repaired = len(kept) < len(whole)
        file: IO[bytes] = self.path.open("r+b" if whole else "wb")
        file.truncate(len(kept))
        file.seek(len(kept))
        return file

    def append(self, value: Any) -> None:
        """Append a value as a line; it is flushed to the file before this returns.

        Raises:
            DataError: if it cannot be written.
        """
        try:
            self._file.write(_encoded(value) + b"\n")
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> DataError:
        if isinstance(error, DataError):
            return error
        return DataError(f"cannot use {self.path}: {getattr(error, 'strerror', None) or error}")

    def _foreign(self, number: int) -> DataError:
        return DataError(
            f"{self.path}, line {number}: not {self.kind}",
            hint="delete the file, or name another one",
        )

    def __enter__(self) -> Self:
        """The file itself."""
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


def _encoded(value: Any) -> bytes:
    """A value as UTF-8 JSON; lone surrogates are escaped."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()
