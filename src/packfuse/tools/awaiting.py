"""Answers for asyncio without a thread for each: the scheduler hands over what it decodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from packfuse.generation.output.result import Answer
from packfuse.scheduler.streaming import ChunkMaker, Item, QueueStreamer, check_stream
from packfuse.scheduler.task import Task
from packfuse.tools.reply import Reply, ReplyDelta
from packfuse.tools.turn import Completion, DeltaMaker


@dataclass(slots=True)
class Pending:
    """Calls that are queued.

    Attributes:
        completions: The calls.
        tasks: Their tasks.
        cancel: Setting it ends them within one step.
    """

    completions: Sequence[Completion]
    tasks: Sequence[Task[list[Answer]]]
    cancel: threading.Event

    @classmethod
    def submit(cls, completions: Sequence[Completion]) -> Pending:
        """Queue calls of one pack.

        Raises:
            BusyError: if too many prompts wait already; none is queued then.
            ClosedError: if the pack was closed.
        """
        cancel = threading.Event()
        tasks = [one.pack.task(one.request, cancel) for one in completions]
        completions[0].pack.scheduler.submit(*tasks)
        return cls(completions, tasks, cancel)

    async def replies(self) -> list[Reply]:
        """All answers, call by call; canceling the asyncio task ends them within one step."""
        try:
            found = [await asyncio.wrap_future(task.future) for task in self.tasks]
        finally:
            self.cancel.set()
        return [
            reply
            for completion, answers in zip(self.completions, found, strict=True)
            for reply in completion.replies(answers)
        ]


class PendingStream:
    """Streamed calls of one pack that are queued.

    Attributes:
        tasks: Their tasks.
    """

    def __init__(self, completions: Sequence[Completion]) -> None:
        """Queue the calls; to be called in the event loop that reads the stream.

        Raises:
            ConfigError: for beams.
            BusyError: if too many prompts wait already; none is queued then.
            ClosedError: if the pack was closed.
        """
        self._loop, self._cancel = asyncio.get_running_loop(), threading.Event()
        self._items: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
        self._makers: list[tuple[ChunkMaker, DeltaMaker]] = []
        self.tasks = [self._task(one) for one in completions]
        completions[0].pack.scheduler.submit(*self.tasks)

    def _task(self, completion: Completion) -> Task[list[Answer]]:
        request, first = completion.request, len(self._makers)
        check_stream(request, several=True)
        puts = [partial(self._put, first + number) for number in range(request.answers_each)]
        self._makers += [
            (ChunkMaker(number), DeltaMaker(completion.parser())) for number in range(len(puts))
        ]
        task = completion.pack.task(request, self._cancel, [QueueStreamer(put) for put in puts])
        for put in puts:
            task.future.add_done_callback(put)
        return task

    def _put(self, number: int, item: Item) -> None:
        """Called by the scheduler's thread. The event loop may be closed by then."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, (number, item))

    def cancel(self) -> None:
        """End the answers within one step."""
        self._cancel.set()

    async def deltas(self) -> AsyncGenerator[tuple[int, ReplyDelta], None]:
        """The deltas of all answers as they come, each with the index of its answer.

        Answers are counted call by call. Closing the generator ends them within one step.
        """
        left = len(self._makers)
        try:
            while left:
                number, item = await self._items.get()
                chunks, maker = self._makers[number]
                chunk = chunks.chunk(item)
                if chunk is None:
                    continue
                for delta in maker.deltas(chunk):
                    yield number, delta
                left -= chunk.record is not None
        finally:
            self.cancel()
