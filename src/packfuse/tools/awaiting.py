"""Answers for asyncio without a thread for each: the scheduler hands over what it decodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from packfuse.generation.result import Answer
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
    """A streamed call that is queued.

    Attributes:
        task: Its task.
    """

    def __init__(self, completion: Completion) -> None:
        """Queue the call; to be called in the event loop that reads the stream.

        Raises:
            ConfigError: for beams or several return sequences.
            BusyError: if too many prompts wait already.
            ClosedError: if the pack was closed.
        """
        check_stream(completion.request)
        self._completion, self._loop = completion, asyncio.get_running_loop()
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        pack, self._cancel = completion.pack, threading.Event()
        self.task = pack.task(completion.request, self._cancel, QueueStreamer(self._put))
        self.task.future.add_done_callback(self._put)
        pack.scheduler.submit(self.task)

    def _put(self, item: Item) -> None:
        """Called by the scheduler's thread. The event loop may be closed by then."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    def cancel(self) -> None:
        """End the answer within one step."""
        self._cancel.set()

    async def deltas(self) -> AsyncGenerator[ReplyDelta, None]:
        """The deltas of the answer; closing the generator ends it within one step."""
        chunks, maker = ChunkMaker(), DeltaMaker(self._completion.parser())
        try:
            while True:
                chunk = chunks.chunk(await self._items.get())
                if chunk is None:
                    continue
                for delta in maker.deltas(chunk):
                    yield delta
                if chunk.record is not None:
                    return
        finally:
            self.cancel()
