"""Pieces of an answer as LlamaIndex's streams, which end generation when they are closed."""

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

_begun: ContextVar[list[Any]] = ContextVar("packfuse_streams_begun")
"""Streams of the method that is being called."""


class Draft(Protocol[Item_co]):
    """Turns pieces into items that hold all that there is so far."""

    def add(self, piece: ReplyDelta) -> Item_co:
        """The item for the next piece."""


def items(pieces: Iterator[ReplyDelta], draft: Draft[Item]) -> Stream[Item]:
    """One item a piece, for a method decorated with `closes`."""

    def stream() -> Stream[Item]:
        with closing(cast("Stream[ReplyDelta]", pieces)):
            for piece in pieces:
                yield draft.add(piece)

    _begun.get().append(begun := stream())
    return begun


def aitems(pieces: AsyncIterator[ReplyDelta], draft: Draft[Item]) -> AsyncStream[Item]:
    """One item a piece, for a method decorated with `acloses`."""

    async def stream() -> AsyncStream[Item]:
        async with aclosing(cast("AsyncStream[ReplyDelta]", pieces)):
            async for piece in pieces:
                yield draft.add(piece)

    _begun.get().append(begun := stream())
    return begun


def closes(method: Method) -> Method:
    """Close what a stream reads from together with it.

    LlamaIndex announces the items of a stream in a generator of its own, which leaves the one
    inside to the garbage collector; whoever keeps its events keeps generation running.
    """

    @functools.wraps(method)
    def begin(*args: Any, **kwargs: Any) -> Stream[Any]:
        inner: list[Any] = []
        token = _begun.set(inner)
        try:
            return read(method(*args, **kwargs), inner)
        finally:
            _begun.reset(token)

    def read(stream: Stream[Any], inner: list[Stream[Any]]) -> Stream[Any]:
        try:
            yield from stream
        finally:
            for begun in inner:
                begun.close()

    return cast("Method", begin)


def acloses(method: Method) -> Method:
    """The same for asyncio."""

    @functools.wraps(method)
    async def begin(*args: Any, **kwargs: Any) -> AsyncStream[Any]:
        inner: list[Any] = []
        token = _begun.set(inner)
        try:
            return read(await method(*args, **kwargs), inner)
        finally:
            _begun.reset(token)

    async def read(stream: AsyncStream[Any], inner: list[AsyncStream[Any]]) -> AsyncStream[Any]:
        try:
            async with aclosing(stream):
                async for item in stream:
                    yield item
        finally:
            for begun in inner:
                await begun.aclose()

    return cast("Method", begin)
