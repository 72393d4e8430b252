"""Gives memory back that the C library holds without using it."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import Any

MAX_FREE = 256 * 2**20
"""Bytes that the C library may hold for later allocations before they are given back."""

_PAUSE = 10.0
"""Least time between two times, in seconds: what is given back has to be fetched again."""


class _HeapInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class Trimmer:
    """Returns free memory to the system, now and then.

    glibc keeps freed memory for the threads that allocated it. Calls of a pack come from many
    threads, each with blocks of logits, and every thread's share stays as large as it ever was.
    """

    def __init__(self) -> None:
        """Nothing was returned yet."""
        self._last = -_PAUSE

    def __call__(self) -> None:
        """Return free memory if there is much of it. Elsewhere than with glibc, do nothing."""
        library, now = _glibc(), time.monotonic()
        if library is None or now - self._last < _PAUSE:
            return
        self._last = now
        if free_bytes() > MAX_FREE:
            library.malloc_trim(0)


def free_bytes() -> int:
    """Bytes that the C library holds without using them; 0 where it does not say."""
    library = _glibc()
    return 0 if library is None else int(library.mallinfo2().fordblks)


@cache
def _glibc() -> Any:
    """The C library; None if it is not glibc."""
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _HeapInfo
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (AttributeError, OSError, TypeError):
        return None
    return library


trim = Trimmer()
