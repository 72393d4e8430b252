"""A streamed answer, generated in a thread that ends with the iterator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from torch import Tensor

from packfuse.generation.result import Answer, Chunk
from packfuse.generation.runner import AnswerStreamer, Runner
from packfuse.text.detokenizer import StreamDetokenizer

_Item = list[int] | StreamDetokenizer | Answer | BaseException
"""A detokenizer, then token ids, and at the end the answer or an error."""


def stream_answer(runner: Runner) -> Generator[Chunk]:
    """Stream the answer to the prompt of a runner; the thread holds the pack's lock.

    Closing the iterator stops generation within one step.
    """
    items: queue.SimpleQueue[_Item] = queue.SimpleQueue()

    def work() -> None:
        try:
            with runner.runtime.lock:
                items.put(runner.run(_QueueStreamer(items))[0])
        except BaseException as error:
            items.put(error)

    thread = threading.Thread(target=work, name="packfuse-stream", daemon=True)
    thread.start()
    detokenizer: StreamDetokenizer | None = None
    try:
        while True:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, StreamDetokenizer):
                detokenizer = item
            elif isinstance(item, Answer):
                yield Chunk(detokenizer.finish() if detokenizer else item.text, item.record)
                return
            elif detokenizer and (text := detokenizer.push(item)):
                yield Chunk(text)
    finally:
        runner.cancels[0].set()
        thread.join()


class _QueueStreamer(AnswerStreamer):
    """Puts generated ids into a queue."""

    def __init__(self, items: queue.SimpleQueue[_Item]) -> None:
        self._items = items
        self._prompt_seen = False

    def begin(self, detokenizer: StreamDetokenizer) -> None:
        self._items.put(detokenizer)

    def put(self, value: Tensor) -> None:
        """Called with the ids of one step; the first call has the prompt."""
        if self._prompt_seen:
            self._items.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: the answer follows."""
