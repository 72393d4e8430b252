"""The work of one call: what the scheduler starts, decodes, and answers."""

from __future__ import annotations

import contextvars
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from transformers.generation.streamers import BaseStreamer

from packfuse.generation.output.result import Answer
from packfuse.generation.request import Prompt
from packfuse.generation.row import Row
from packfuse.generation.runner import Runner
from packfuse.models.member import Pause

T = TypeVar("T")

Precision = tuple[tuple[str, torch.dtype], ...]
"""The types of devices under autocast, with the type that each computes in."""

_BYTES_PER_TOKEN = 3
"""Bytes of text of a token, for an estimate before a prompt is tokenized."""


class Cancellation(threading.Event):
    """The event that ends one call; it counts as set while the caller's own event is.

    What a call sets itself, at its end or after an error, the caller's event does not become.
    """

    def __init__(self, outer: threading.Event | None = None) -> None:
        """Watch the caller's event; None for none."""
        super().__init__()
        self._outer = outer

    def is_set(self) -> bool:
        """Whether the call is to end."""
        return super().is_set() or (self._outer is not None and self._outer.is_set())


class Task(ABC, Generic[T]):
    """Work that belongs to one call.

    Attributes:
        cancel: Setting it ends the task within one step.
        future: The result.
        precision: The autocast of the thread that made the task.
        count: Number of rows that the task will have.
        prompt_tokens: Estimate of the tokens of its prompt.
        tokens: Estimate of the most tokens of a row, prompt included.
        bypassed: How often a later task was started before this one.
        submitted: When the task was made, seconds by `time.monotonic`.
        first_token: When its first token was chosen; None before, and for other work than answers.
    """

    count = 1
    prompt_tokens = 0
    tokens = 0

    def __init__(self, cancel: threading.Event) -> None:
        """Remember the context of the calling thread."""
        self.cancel = cancel
        self.future: Future[T] = Future()
        self.future.add_done_callback(self._cancel_with_future)
        self.precision = autocast_here()
        self.bypassed = 0
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self._context = contextvars.copy_context()

    def _cancel_with_future(self, future: Future[T]) -> None:
        if future.cancelled():
            self.cancel.set()

    @abstractmethod
    def in_rows(self, *, alone: bool) -> bool:
        """Whether `start` makes rows, rather than doing all the work.

        Args:
            alone: Whether no other task is running or waiting.
        """

    @abstractmethod
    def start(self, pause: Pause, *, alone: bool) -> Sequence[Row]:
        """Begin.

        Args:
            pause: Interrupts the work, so that other tasks go on.
            alone: As for `in_rows`.

        Returns:
            The rows that are to be decoded; none if the task has its result.
        """

    def end(self, row: Row) -> None:
        """Called when a row has ended."""

    def run(self, work: Callable[[], Any]) -> Any:
        """Call a function as the calling thread would: in its context and its autocast."""
        with autocast(self.precision):
            return self._context.run(work)

    def succeed(self, result: T) -> None:
        """Set the result, unless nobody waits for it any more."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.cancel.set()
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class AnswerTask(Task[list[Answer]]):
    """The answers to one prompt, decoded as rows."""

    def __init__(
        self, runner: Runner, index: int = 0, streamers: Sequence[BaseStreamer] = ()
    ) -> None:
        """Nothing runs yet.

        Args:
            runner: Runs a request whose answers are decoded in rows.
            index: Index of the prompt in the request.
            streamers: One for each answer, called with its ids; none to stream nothing.
        """
        super().__init__(runner.cancels[index])
        self._runner, self._index, self._streamers = runner, index, streamers
        self._rows: list[Row] = []
        self._answers: dict[int, Answer] = {}
        request = runner.request
        self.count = request.answers_each
        longest = request.arguments.get("max_new_tokens") or request.arguments.get("max_length")
        self.prompt_tokens = _estimate(request.prompts[index])
        self.tokens = self.prompt_tokens + int(longest or 0)

    def in_rows(self, *, alone: bool) -> bool:
        """See `Task`.

        A draft method is used if the task is alone: a batch is faster without. It is not used where
        members may be left out, which rows can.
        """
        request = self._runner.request
        if self._runner.runtime.settings.on_member_failure == "drop":
            return True
        return not (alone and request.takes_drafts and request.call.draft is not None)

    def start(self, pause: Pause, *, alone: bool) -> Sequence[Row]:
        """See `Task`."""
        if not self.in_rows(alone=alone):
            streamer = self._streamers[0] if self._streamers else None
            self.succeed(self.run(lambda: self._runner.run(streamer, pause)))
            return ()
        self._rows = self.run(lambda: self._begun(pause))
        return self._rows

    def _begun(self, pause: Pause) -> list[Row]:
        rows = self._runner.rows(self._index, self._streamers, pause)
        for row in rows:
            row.begin()
        self.first_token = time.monotonic()
        return rows

    def end(self, row: Row) -> None:
        """See `Task`."""
        number = next(number for number, own in enumerate(self._rows) if own is row)
        self._answers[number] = self.run(row.answer)
        if len(self._answers) == len(self._rows):
            self.succeed([self._answers[number] for number in range(len(self._rows))])


class WholeTask(Task[T]):
    """Work that runs to its end in one go: beams, scores, weights. It pauses for other tasks."""

    def __init__(self, work: Callable[[Pause], T], cancel: threading.Event | None = None) -> None:
        """Nothing runs yet.

        Args:
            work: Called once, with what interrupts it.
            cancel: What ends the work, if it looks at it.
        """
        super().__init__(cancel or threading.Event())
        self._work = work

    def in_rows(self, *, alone: bool) -> bool:
        """See `Task`."""
        return False

    def start(self, pause: Pause, *, alone: bool) -> Sequence[Row]:
        """See `Task`."""
        self.succeed(self.run(lambda: self._work(pause)))
        return ()


def autocast_here() -> Precision:
    """The autocast of this thread."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    )


@contextmanager
def autocast(precision: Precision) -> Iterator[None]:
    """A context in which torch computes under an autocast, and under no other."""
    if precision == (now := autocast_here()):
        yield
        return
    with ExitStack() as stack:
        for device, _ in now:
            stack.enter_context(torch.autocast(device, enabled=False))
        for device, dtype in precision:
            stack.enter_context(torch.autocast(device, dtype))
        yield


def _estimate(prompt: Prompt) -> int:
    """About how many tokens a prompt has."""
    text = prompt if isinstance(prompt, str) else "".join(str(m.get("content")) for m in prompt)
    return len(text.encode()) // _BYTES_PER_TOKEN + 1
