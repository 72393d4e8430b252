"""Which waiting task may start: by the number of rows, and by the memory of their KV caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from packfuse.models.devices import free_memory
from packfuse.models.member import Member
from packfuse.scheduler.task import Task

FREE_SHARE = 0.5
"""Default for the memory of all rows, as a share of the free memory of the fullest device."""

MAX_BYPASSED = 8
"""How often tasks that need less memory may start before one that waits for more."""


@dataclass(slots=True)
class Admission:
    """The room for rows.

    Attributes:
        max_rows: Most rows.
        max_bytes: Most bytes of the KV caches of all rows.
        bytes_per_token: Memory of one token of a row, all members together; 0 until a prompt has
            been read.
    """

    max_rows: int
    max_bytes: int
    bytes_per_token: float = 0.0
    _held: dict[Task[Any], float] = field(default_factory=dict)

    def choose(self, waiting: Sequence[Task[Any]], running: int) -> Task[Any] | None:
        """The task to start now; None if all have to wait.

        The first one comes first. While it waits for memory, later ones that fit may start, but
        only so many that the first one is not kept waiting for ever.

        Args:
            waiting: Tasks in the order of their calls.
            running: Number of rows that are running.
        """
        for index, task in enumerate(waiting):
            if not running or self._fits(task, running):
                for earlier in waiting[:index]:
                    earlier.bypassed += 1
                return task
            if task.bypassed >= MAX_BYPASSED or running + task.count > self.max_rows:
                return None
        return None

    def _fits(self, task: Task[Any], running: int) -> bool:
        held = sum(self._held.values())
        return running + task.count <= self.max_rows and held + self._size(task) <= self.max_bytes

    def _size(self, task: Task[Any]) -> float:
        """The memory that a task may need, in bytes."""
        return task.count * task.tokens * self.bytes_per_token

    def take(self, task: Task[Any]) -> None:
        """Reserve the memory of a task."""
        self._held[task] = self._size(task)

    def free(self, task: Task[Any]) -> None:
        """Give the memory of a task back."""
        self._held.pop(task, None)

    def learn(self, tokens: int, nbytes: int) -> None:
        """Take the memory of a token from a prompt that has been read."""
        if tokens:
            self.bytes_per_token = nbytes / tokens


def memory_limit(setting: int | Literal["auto"], members: Iterable[Member]) -> int:
    """Most bytes of the KV caches of all rows.

    Args:
        setting: A number of bytes, or "auto" for a share of what is free now.
        members: The members, for their devices.
    """
    if setting != "auto":
        return setting
    return int(FREE_SHARE * min(free_memory(device) for device in {m.device for m in members}))
