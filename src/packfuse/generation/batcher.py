"""Calls from many threads on one pack: those with equal settings are answered as one batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from packfuse.generation.request import Request
from packfuse.generation.result import Answer
from packfuse.generation.runner import Runner
from packfuse.generation.runtime import Runtime

MAX_BATCH = 16
"""Most prompts in a batch."""
_GATHER = 0.01
"""Seconds to wait for other calls: short next to a prompt pass, enough for a thread pool."""


@dataclass(eq=False, slots=True)
class _Call:
    """A call that waits for its answer."""

    request: Request
    cancel: threading.Event
    answer: Future[Answer] = field(default_factory=Future)


class Batcher:
    """Answers single prompts. It has no thread: the call that gets the lock runs the batch."""

    def __init__(self, runtime: Runtime) -> None:
        """No call is waiting."""
        self._runtime = runtime
        self._waiting: list[_Call] = []
        self._mutex = threading.Lock()

    def answer(self, request: Request, cancel: threading.Event | None = None) -> Answer:
        """The answer to a request of one prompt, which may come out of a batch of several.

        Args:
            request: Made by `make_request`.
            cancel: Setting it ends the answer within one step.

        Raises:
            CancelledError: if it was cancelled before it began.
        """
        call = _Call(request, cancel or threading.Event())
        with self._mutex:
            self._waiting.append(call)
        with self._runtime.lock:
            if not call.answer.done():
                time.sleep(_GATHER)
                self._lead(self._join(call))
        return call.answer.result()

    def _join(self, call: _Call) -> list[_Call]:
        """The call and those that can share its batch, no longer waiting."""
        with self._mutex:
            others = [
                other
                for other in self._waiting
                if other is not call and not other.cancel.is_set()
                and call.request.joins(other.request)
            ]  # fmt: skip
            # A call that was cancelled runs alone, and ends at once.
            group = [call] if call.cancel.is_set() else [call, *others[: MAX_BATCH - 1]]
            self._waiting = [other for other in self._waiting if other not in group]
        return group

    def _lead(self, group: list[_Call]) -> None:
        prompts = [call.request.prompts[0] for call in group]
        request = replace(group[0].request, prompts=prompts)
        try:
            answers = Runner(self._runtime, request, [call.cancel for call in group]).run()
        except Exception as error:
            if len(group) == 1:
                group[0].answer.set_exception(error)
                return
            # One call is at fault; the others get their answers.
            for call in group:
                self._lead([call])
            return
        for call, answer in zip(group, answers, strict=True):
            call.answer.set_result(answer)
