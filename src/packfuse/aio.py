"""Calls and streams for asyncio, which do not block the event loop and can be cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TypeVar

T = TypeVar("T")

MAX_THREADS = 64
"""Number of calls that can wait at the same time."""


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="packfuse")


if hasattr(os, "register_at_fork"):
    # Threads do not exist in a forked process.
    os.register_at_fork(after_in_child=_threads.cache_clear)


async def call(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread; cancelling the task sets the event that `work` gets."""
    cancel = threading.Event()
    context = contextvars.copy_context()
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_threads(), context.run, work, cancel)
    finally:
        cancel.set()


async def iterate(make: Callable[[threading.Event], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Yield the items of an iterator that runs in a thread.

    Closing the generator, or cancelling the task, sets the event that `make` gets. The thread ends
    after its current item.
    """
    cancel, loop = threading.Event(), asyncio.get_running_loop()
    items: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

    def put(item: tuple[T] | BaseException | None) -> None:
        # The event loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    def pump() -> None:
        try:
            for item in make(cancel):
                put((item,))
                if cancel.is_set():
                    break
        except BaseException as error:
            put(error)
        else:
            put(None)

    _threads().submit(contextvars.copy_context().run, pump)
    try:
        while (item := await items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        cancel.set()
