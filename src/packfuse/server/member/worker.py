"""The thread in which the member computes, and what waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

SHORT = 16
"""Most tokens of a job that is done between two parts of a long one."""

_IDLE_SECONDS = 1.0
"""How often `idle` is called while nothing is to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do.

    Attributes:
        client: For whom; the jobs of one client are done in their order. "" for none.
        tokens: Number of tokens to read.
        run: Does it. It raises no error.
    """

    client: str
    tokens: int
    run: Callable[[], object]


class Worker:
    """A thread that does one job after the other, and short ones in the pauses of long ones."""

    def __init__(self, idle: Callable[[], object]) -> None:
        """Nothing is done before `start`.

        Args:
            idle: Called between jobs, at least every second.
        """
        self._idle = idle
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="packfuse-worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Add a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the jobs that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def give_way(self) -> None:
        """Do the short jobs that wait; called in the pauses of a long one."""
        while (job := self._short()) is not None:
            job.run()

    def _short(self) -> Job | None:
        """A waiting job that is short, and none of whose client's jobs waits before it."""
        with self._changed:
            before: set[str] = set()
            for job in self._waiting:
                if job.tokens <= SHORT and job.client not in before:
                    self._waiting.remove(job)
                    return job
                if job.client:
                    before.add(job.client)
        return None

    def _loop(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(_IDLE_SECONDS)
                if not self._waiting and self._closed:
                    return
                job = self._waiting.popleft() if self._waiting else None
            if job:
                job.run()
            self._idle()
