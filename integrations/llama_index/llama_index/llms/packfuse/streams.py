"""LlamaIndex's streams of a reply, which stop generation when they are closed."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

from packfuse.tools import ReplyDelta

Method = TypeVar("Method", bound=Callable[..., Any])
Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)
Stream = Generator[Item, None, None]
AsyncStream = AsyncGenerator[Item, None]

_open_streams: ContextVar[list[Any]] = ContextVar("packfuse_open_streams")
"""The streams that the running method has created."""


class PartialReply(Protocol[Item_co]):
    """Makes items, each with the whole reply so far, from deltas."""

    def add(self, delta: ReplyDelta) -> Item_co:
        """The item for the next delta."""


def items(deltas: Iterator[ReplyDelta], reply: PartialReply[Item]) -> Stream[Item]:
    """One item per delta, for a method decorated with `closes`."""

    def stream() -> Stream[Item]:
        with closing(cast("Stream[ReplyDelta]", deltas)):
            for delta in deltas:
                yield reply.add(delta)

    _open_streams.get().append(created := stream())
    return created


def aitems(deltas: AsyncIterator[ReplyDelta], reply: PartialReply[Item]) -> AsyncStream[Item]:
    """One item per delta, for a method decorated with `acloses`."""

    async def stream() -> AsyncStream[Item]:
        async with aclosing(cast("AsyncStream[ReplyDelta]", deltas)):
            async for delta in deltas:
                yield reply.add(delta)

    _open_streams.get().append(created := stream())
    return created


def closes(method: Method) -> Method:
    """Decorate a streaming method: closing its stream also closes the inner stream.

    LlamaIndex wraps the stream in a generator, which leaves the inner stream to the garbage
    collector. Without this decorator, generation would run as long as an event is in memory.
    """

    @functools.wraps(method)
    def begin(*args: Any, **kwargs: Any) -> Stream[Any]:
        inner: list[Any] = []
        token = _open_streams.set(inner)
        try:
            return read(method(*args, **kwargs), inner)
        finally:
            _open_streams.reset(token)

    def read(stream: Stream[Any], inner: list[Stream[Any]]) -> Stream[Any]:
        try:
            yield from stream
        finally:
            for opened in inner:
                opened.close()

    return cast("Method", begin)


def acloses(method: Method) -> Method:
    """`closes` for asyncio."""

    @functools.wraps(method)
    async def begin(*args: Any, **kwargs: Any) -> AsyncStream[Any]:
        inner: list[Any] = []
        token = _open_streams.set(inner)
        try:
            return read(await method(*args, **kwargs), inner)
        finally:
            _open_streams.reset(token)

    async def read(stream: AsyncStream[Any], inner: list[AsyncStream[Any]]) -> AsyncStream[Any]:
        try:
            async with aclosing(stream):
                async for item in stream:
                    yield item
        finally:
            for opened in inner:
                await opened.aclose()

    return cast("Method", begin)
