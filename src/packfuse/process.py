"""What happens to locks and running calls when a process forks or ends."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType

import torch

from packfuse.errors import ForkError

EXITING = threading.Event()
"""Set when the interpreter ends. Running calls then stop within one step, like cancelled ones."""

_in_child: set[weakref.WeakMethod[Callable[[], None]]] = set()
_pack_locks: weakref.WeakSet[PackLock] = weakref.WeakSet()


def on_fork(method: Callable[[], None]) -> None:
    """Call a method in every forked child, as long as its object exists."""
    _in_child.add(weakref.WeakMethod(method, _in_child.discard))


class PackLock:
    """A reentrant lock that is held while a call of a pack runs.

    A forked child has no threads but the one that forked. If another thread held the lock, the
    members' caches may be in any state in the child, and nothing would ever release the lock: every
    call in the child raises an error then. Otherwise the child goes on with a lock of its own.
    """

    def __init__(self) -> None:
        """A free lock."""
        self._lock = threading.RLock()
        self._orphaned = False
        _pack_locks.add(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Like `threading.RLock.acquire`.

        Raises:
            ForkError: in a child that was forked while another thread held the lock.
        """
        if self._orphaned:
            raise ForkError(
                "this process was forked while another thread of its parent used the pack",
                hint="fork before or between calls, or load the pack in the child",
            )
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Like `threading.RLock.release`."""
        self._lock.release()

    def __enter__(self) -> PackLock:
        """Acquire the lock."""
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.release()

    def reset_in_child(self) -> None:
        """Called once in a forked child, in its only thread."""
        if self._lock.acquire(blocking=False):
            self._lock.release()  # it is free, or held by the thread that forked
        else:
            self._orphaned = True


def _after_fork() -> None:
    for lock in list(_pack_locks):
        lock.reset_in_child()
    for reference in list(_in_child):
        method = reference()
        if method is not None:
            method()
    if _pack_locks:
        # The worker threads of OpenMP do not exist here, and the thread that forked would wait for
        # them for ever.
        torch.set_num_threads(1)


def _end_calls() -> None:
    """Wait for running calls: a thread that computes while the interpreter ends aborts it."""
    EXITING.set()
    for lock in list(_pack_locks):
        if not lock._orphaned:
            lock.acquire()


atexit.register(_end_calls)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
