"""Calls from several threads on one pack: calls with equal settings are answered as one batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from packfuse.generation.request import Request
from packfuse.generation.result import Answer
from packfuse.generation.runner import Runner
from packfuse.generation.runtime import Runtime
from packfuse.process import on_fork

MAX_BATCH = 16
"""Largest number of prompts in a batch."""
_GATHER_SECONDS = 0.01
"""Time to wait for other calls: short compared with reading a prompt, long enough for threads."""


@dataclass(eq=False, slots=True)
class _Call:
    """A call that waits for its answers."""

    request: Request
    cancel: threading.Event
    answers: Future[list[Answer]] = field(default_factory=Future)


class Batcher:
    """Answers single prompts. It starts no thread: the call that gets the lock runs the batch."""

    def __init__(self, runtime: Runtime) -> None:
        """Start without calls."""
        self._runtime = runtime
        self._waiting: list[_Call] = []
        self._mutex = threading.Lock()
        on_fork(self._forget_calls)

    def _forget_calls(self) -> None:
        """In a forked child, where the threads of waiting calls do not exist."""
        self._waiting, self._mutex = [], threading.Lock()

    def answer(self, request: Request, cancel: threading.Event | None = None) -> Answer:
        """The one answer to a request of one prompt; see `answers`.

        Raises:
            ConfigError: for a request of several answers.
            CancelledError: if the call was cancelled before it began.
        """
        request.one_answer("this call")
        return self.answers(request, cancel)[0]

    def answers(self, request: Request, cancel: threading.Event | None = None) -> list[Answer]:
        """Answer a request of one prompt, if possible in a batch with other calls.

        Args:
            request: A request from `make_request`.
            cancel: Setting it stops generation within one step.

        Returns:
            As many answers as the request has return sequences.

        Raises:
            CancelledError: if the call was cancelled before it began.
        """
        call = _Call(request, cancel or threading.Event())
        try:
            with self._mutex:
                self._waiting.append(call)
            with self._runtime.lock:
                if not call.answers.done():
                    time.sleep(_GATHER_SECONDS)
                    self._run(self._take_batch(call))
        finally:
            # Only an interrupted call is still there.
            with self._mutex:
                self._waiting = [other for other in self._waiting if other is not call]
        return call.answers.result()

    def _take_batch(self, call: _Call) -> list[_Call]:
        """Remove a call, and waiting calls that fit into its batch, from the queue."""
        with self._mutex:
            others = [
                other
                for other in self._waiting
                if other is not call and not other.cancel.is_set()
                and call.request.can_batch_with(other.request)
            ]  # fmt: skip
            # A cancelled call runs alone, and ends at once.
            batch = [call] if call.cancel.is_set() else [call, *others[: MAX_BATCH - 1]]
            self._waiting = [other for other in self._waiting if other not in batch]
        return batch

    def _run(self, batch: list[_Call]) -> None:
        prompts = [call.request.prompts[0] for call in batch]
        request = replace(batch[0].request, prompts=prompts)
        try:
            answers = Runner(self._runtime, request, [call.cancel for call in batch]).run()
        except Exception as error:
            if len(batch) == 1:
                batch[0].answers.set_exception(error)
                return
            # Run one by one, so that only the call that caused the error fails.
            for call in batch:
                self._run([call])
            return
        each = len(answers) // len(batch)
        for index, call in enumerate(batch):
            call.answers.set_result(answers[index * each : (index + 1) * each])
