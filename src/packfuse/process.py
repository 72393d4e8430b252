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
_computing: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def on_fork(method: Callable[[], None]) -> None:
    """Call a method in every forked child, as long as its object exists."""
    _in_child.add(weakref.WeakMethod(method, _in_child.discard))


class PackLock:
    """A reentrant lock that is held while members compute for a call.

    It is fair: a thread that waits gets it before the one that released it gets it again. So a
    thread that takes it for every step leaves the others their turn.

    A forked child has no threads but the one that forked. A fork waits until no other thread holds
    the lock, so that the child finds the members between two steps. If that takes too long, every
    call in the child raises an error, since the members' caches may be in any state there.
    """

    def __init__(self) -> None:
        """A free lock."""
        self._lock, self._queue = threading.Lock(), threading.Lock()
        self._owner = 0
        self._depth = 0
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
        if not self.is_mine:
            if not self._queue.acquire(blocking, timeout):
                return False
            try:
                if not self._lock.acquire(blocking, timeout):
                    return False
            finally:
                self._queue.release()
            self._owner = threading.get_ident()
        self._depth += 1
        return True

    def release(self) -> None:
        """Like `threading.RLock.release`.

        Raises:
            RuntimeError: if this thread does not hold the lock.
        """
        if not self.is_mine:
            raise RuntimeError("this thread does not hold the lock")
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._lock.release()

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner == threading.get_ident()

    def give_way(self) -> None:
        """Let a thread that waits have the lock, and take it back; the caller holds it."""
        depth, self._depth = self._depth, 1
        self.release()
        self.acquire()
        self._depth = depth

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

    def reset_in_child(self, *, held: bool) -> None:
        """Called once in a forked child, in its only thread.

        Args:
            held: Whether this thread took the lock for the fork.
        """
        self._queue = threading.Lock()  # a thread that does not exist here may hold the old one
        if held:
            self.release()
        else:
            self._orphaned = True


_FORK_SECONDS = 30.0
"""Longest time that a fork waits for a pack: a step of a large model, or a part of a prompt."""

_forking: dict[int, list[PackLock]] = {}
"""The locks that a thread has taken for a fork, by thread."""


def _before_fork() -> None:
    taken = _forking.setdefault(threading.get_ident(), [])
    taken += [
        lock
        for lock in sorted(_pack_locks, key=id)
        if not lock._orphaned and lock.acquire(timeout=_FORK_SECONDS)
    ]


def _after_fork_in_parent() -> None:
    for lock in _forking.pop(threading.get_ident(), ()):
        lock.release()


def _after_fork_in_child() -> None:
    taken = _forking.pop(threading.get_ident(), [])
    _forking.clear()
    for lock in list(_pack_locks):
        if not lock._orphaned:
            lock.reset_in_child(held=lock in taken)
    for reference in list(_in_child):
        method = reference()
        if method is not None:
            method()
    if _pack_locks:
        # The worker threads of OpenMP do not exist here, and the thread that forked would wait for
        # them for ever.
        torch.set_num_threads(1)


def wait_at_exit(thread: threading.Thread) -> None:
    """Let the end of the interpreter wait for a thread, which ends soon after `EXITING` is set."""
    _computing.add(thread)


_EXIT_SECONDS = 30.0
"""Longest time that the end of the interpreter waits for a thread that computes for calls."""


def _end_calls() -> None:
    """Wait for running calls: a thread that computes while the interpreter ends aborts it.

    So does one that frees tensors: the thread of a pack may be the last that refers to the pack.
    """
    EXITING.set()
    for thread in list(_computing):
        thread.join(_EXIT_SECONDS)
    for lock in list(_pack_locks):
        if not lock._orphaned:
            lock.acquire()


atexit.register(_end_calls)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
