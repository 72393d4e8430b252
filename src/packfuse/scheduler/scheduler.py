"""One thread that computes for all calls of a pack; sequences join and leave between steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from packfuse.errors import BusyError, ClosedError, ServerError
from packfuse.generation.row import Row
from packfuse.generation.runtime import Runtime
from packfuse.models.batching import MAX_CHUNK_TOKENS, MAX_DEVICE_TOKENS, NO_PAUSE
from packfuse.models.compute.heap import trim
from packfuse.models.compute.threads import release_openmp_threads
from packfuse.models.member import Pause
from packfuse.process import EXITING, on_fork, wait_at_exit
from packfuse.scheduler.admission import Admission, memory_limit
from packfuse.scheduler.task import Task, autocast
from packfuse.transfer import download

T = TypeVar("T")

READ_TOKENS = 64
"""Most tokens of prompts that are read between two steps of running answers.

A long prompt is read in parts of this size. Short ones are read together while the sum fits, by an
estimate of their lengths.
"""

DEVICE_READ_TOKENS = 1024
"""The same on accelerators, where so many tokens take little longer than a few."""


@dataclass(frozen=True, slots=True)
class Running:
    """A row that is being decoded, and the task that it belongs to."""

    task: Task[Any]
    row: Row


class Scheduler:
    """Runs tasks: all rows advance together, and short prompts, or a part of one, are read between.

    The thread exists only while there is work. Nothing of a task is stored but in the task and its
    rows, so tasks may have any settings, and the answers are those of each task alone.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Without work there is no thread."""
        self._runtime = runtime
        self.on_step: Callable[[int, float], object] | None = None
        """Called after every step with the number of rows, and the seconds that it took."""
        self._admission: Admission | None = None
        self._reset()
        on_fork(self._reset)

    def _reset(self) -> None:
        """Start without tasks; also in a forked child, where the threads of the calls are not."""
        self._mutex = threading.Lock()
        self._waiting: list[Task[Any]] = []
        self._running: list[Running] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._busy = False

    def submit(self, *tasks: Task[Any]) -> None:
        """Queue tasks; their futures get the results.

        Raises:
            BusyError: if too many prompts wait already; none of the tasks is queued then.
            ClosedError: after `close`.
        """
        limit = self._runtime.settings.max_waiting
        release_openmp_threads()
        with self._mutex:
            if self._closed:
                raise ClosedError("this pack was closed", hint="load it again")
            waiting = len(self._waiting)
            if waiting and waiting + len(tasks) > limit:
                raise BusyError(
                    f"{waiting} prompts wait for this pack already, and {limit} may",
                    waiting=waiting,
                    hint="try again later, or raise max_waiting",
                )
            self._waiting += tasks
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="packfuse-scheduler", daemon=True
                )
                self._thread.start()
                wait_at_exit(self._thread)

    def run(self, *tasks: Task[T]) -> list[T]:
        """Run tasks and wait for their results.

        Raises:
            BusyError: if too many prompts wait already.
            CancelledError: for a task that was cancelled before its first token.
            Exception: the first error of a task, once the other tasks have been cancelled.
        """
        if self.is_mine:
            # Called by a processor or a streamer of a running task, or under the pack's lock.
            for task in tasks:
                self._run_here(task)
        else:
            self.submit(*tasks)
        try:
            return [task.future.result() for task in tasks]
        except BaseException:
            for task in tasks:
                task.cancel.set()
            raise

    @property
    def is_mine(self) -> bool:
        """Whether this thread may not wait for the scheduler: it holds the pack's lock."""
        return self._runtime.lock.is_mine

    @property
    def waiting(self) -> int:
        """Number of prompts that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of answers that are being decoded."""
        return len(self._running)

    def close(self) -> None:
        """End all tasks within one step, and refuse new ones."""
        with self._mutex:
            self._closed = True
            thread, waiting = self._thread, list(self._waiting)
            for task in [*waiting, *(one.task for one in self._running)]:
                task.cancel.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        """Run until nothing is left."""
        while True:
            with self._mutex:
                if not self._waiting and not self._running:
                    self._thread = None
                    break
            try:
                with self._runtime.lock:
                    self._turn()
            except BaseException as error:
                self._fail_all(error)
        trim()

    def _fail_all(self, error: BaseException) -> None:
        """End all tasks with an error that belongs to none of them."""
        with self._mutex:
            tasks = [*self._waiting, *(one.task for one in self._running)]
            self._waiting, self._running = [], []
        for task in tasks:
            self._room().free(task)
            task.fail(error)

    def _turn(self) -> None:
        """Start tasks with short prompts, or one other, and advance all rows by one token."""
        self._drop_cancelled()
        left = self._part_tokens
        while left > 0 and (task := self._next(left)) is not None:
            left -= self._start(task)
        self._step()

    def _next(self, tokens: int) -> Task[Any] | None:
        """The task to start now, which leaves the queue; None if all have to wait.

        Args:
            tokens: Most tokens of its prompt, if others have been read in this turn.
        """
        most = self._part_tokens
        with self._mutex:
            # While a task does all its work, only tasks with rows are started.
            only_rows = self._busy or tokens < most
            waiting = [t for t in self._waiting if not only_rows or t.in_rows(alone=False)]
            if tokens < most and waiting and waiting[0].prompt_tokens > tokens:
                return None
            task = self._room().choose(waiting, len(self._running))
            if task is not None:
                self._waiting.remove(task)
            return task

    @property
    def _on_processors(self) -> bool:
        """Whether no member of this process computes on an accelerator."""
        return all(member.device.type == "cpu" for member in self._runtime.members)

    @property
    def _part_tokens(self) -> int:
        """Most tokens of prompts that are read between two steps."""
        return READ_TOKENS if self._on_processors else DEVICE_READ_TOKENS

    def _room(self) -> Admission:
        if self._admission is None:
            settings, members = self._runtime.settings, self._runtime.members
            limit = memory_limit(settings.max_cache, members)
            self._admission = Admission(settings.max_rows, limit)
        return self._admission

    def _start(self, task: Task[Any]) -> int:
        """Read the prompt of a task, or do all its work; the number of tokens that it took."""
        admission = self._room()
        admission.take(task)
        alone = not (self._running or self._waiting or self._busy)
        in_rows, busy = task.in_rows(alone=alone), self._busy
        whole = MAX_CHUNK_TOKENS if self._on_processors else MAX_DEVICE_TOKENS
        tokens = whole if alone else self._part_tokens
        self._busy = busy or not in_rows
        try:
            rows = task.start(Pause(tokens, partial(self._between, in_rows)), alone=alone)
        except BaseException as error:
            task.fail(error)
            rows = ()
        finally:
            self._busy = busy
        read = max([self._learn(row) for row in rows], default=self._part_tokens)
        if not rows:
            admission.free(task)
        started = [Running(task, row) for row in rows]
        self._running += started
        self._end([one for one in started if one.row.done])
        return read

    def _learn(self, row: Row) -> int:
        """Take the memory of a token from a row; the number of its tokens."""
        members, streams = self._runtime.members, row.sequence.streams
        pairs = [(m, s.session) for m, s in zip(members, streams, strict=True) if s]
        nbytes = sum(member.nbytes(session) for member, session in pairs)
        tokens = max(session.length for _, session in pairs)
        self._room().learn(tokens, nbytes)
        return tokens

    def _between(self, in_rows: bool) -> None:
        """Between two parts of a task that takes long: let other threads and tasks go on.

        Args:
            in_rows: Whether the task will have rows, and is reading its prompt now. No other prompt
                is read meanwhile.
        """
        self._runtime.lock.give_way()
        if in_rows:
            self._drop_cancelled()
            self._step()
        else:
            self._turn()

    def _step(self) -> None:
        rows, started = list(self._running), time.perf_counter()
        self._advance(rows, self._fail)
        self._end([one for one in self._running if one.row.done])
        if rows and self.on_step:
            self.on_step(len(rows), time.perf_counter() - started)

    def _drop_cancelled(self) -> None:
        """End what was cancelled: tasks that wait with an error, rows with what they have."""
        exiting = EXITING.is_set()
        with self._mutex:
            dropped = [task for task in self._waiting if exiting or task.cancel.is_set()]
            self._waiting = [task for task in self._waiting if task not in dropped]
        for task in dropped:
            task.fail(CancelledError())
        self._end([one for one in self._running if exiting or one.task.cancel.is_set()])

    def _end(self, ended: Iterable[Running]) -> None:
        for one in ended:
            self._running = [other for other in self._running if other is not one]
            try:
                one.task.end(one.row)
            except BaseException as error:
                self._fail(one, error)
            if not any(other.task is one.task for other in self._running):
                self._room().free(one.task)

    def _fail(self, failed: Running, error: BaseException) -> None:
        """End a task with an error; the others go on."""
        self._running = [other for other in self._running if other.task is not failed.task]
        self._room().free(failed.task)
        failed.task.fail(error)

    def _advance(
        self, rows: Sequence[Running], fail: Callable[[Running, BaseException], None]
    ) -> None:
        """Advance rows by one token; those of one reference as a batch."""
        groups: dict[Any, list[Running]] = {}
        for one in rows:
            groups.setdefault((id(one.row.model), one.task.precision), []).append(one)
        for group in groups.values():
            chosen: list[tuple[Running, Tensor]] = []
            for one, logps in _distributions(group, fail):
                try:
                    chosen.append((one, one.task.run(partial(one.row.choose, logps))))
                except BaseException as error:
                    fail(one, error)
            # The host waits once for the tokens of all rows.
            tokens = download([token for _, token in chosen])
            for (one, _), token in zip(chosen, tokens, strict=True):
                try:
                    one.task.run(partial(one.row.accept, token))
                except BaseException as error:
                    fail(one, error)

    def _run_here(self, task: Task[Any]) -> None:
        """Run a task in this thread, while all others wait."""
        failed: list[BaseException] = []

        def fail(_: Running, error: BaseException) -> None:
            failed.append(error)

        try:
            rows = list(task.start(NO_PAUSE, alone=False))
            while rows and not failed:
                cancelled = task.cancel.is_set()
                for row in rows:
                    if row.done or cancelled:
                        task.end(row)
                rows = [row for row in rows if not row.done and not cancelled]
                self._advance([Running(task, row) for row in rows], fail)
        except BaseException as error:
            failed.append(error)
        if failed:
            task.fail(failed[0])


def _distributions(
    group: Sequence[Running], fail: Callable[[Running, BaseException], None]
) -> list[tuple[Running, Any]]:
    """The rows of one reference with their next distributions, without those that failed."""
    rows = [one.row for one in group]
    model, precision = rows[0].model, group[0].task.precision
    lengths = [row.sequence.length for row in rows]
    try:
        with autocast(precision), model.decoding_context():
            logps = model.engine.advance(
                [row.sequence for row in rows],
                [[row.last] for row in rows],
                [row.call for row in rows],
                defers_check=True,
            )
    except Exception as error:
        for row, length in zip(rows, lengths, strict=True):
            row.sequence.crop(row.sequence.length - length)
        if isinstance(error, ServerError):
            changed = [row.leave_out(error.member) for row in rows]
            if any(changed):
                return _distributions(group, fail)
        if len(group) == 1:
            fail(group[0], error)
            return []
    else:
        return list(zip(group, logps[:, -1], strict=True))
    # One by one, so that only the row that caused the error fails.
    return [pair for one in group for pair in _distributions([one], fail)]
