"""Requests over HTTP go to a replica by the beginning of their prompt, and answers come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray.exceptions import RayError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from packfuse.ray.routing import routing_key
from packfuse.server.limits import App, Guard, Message, Receive, RequestLimits, Scope, Send
from packfuse.server.problems import RequestError

_SENT = ("type", "http_version", "method", "path", "raw_path", "query_string", "root_path",
         "scheme", "headers", "client", "server")  # fmt: skip
"""What a replica is told of a request."""


class Forwarder:
    """An ASGI application whose requests replicas answer."""

    def __init__(self, handle: Any) -> None:
        """Forward to the replicas of a handle, which have `PackReplica.respond`."""
        self._respond = handle.options(stream=True).respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request; if the client leaves, the replica is told."""
        body = (await receive()).get("body", b"")  # `Guard` has read it all
        told = {name: scope[name] for name in _SENT if name in scope}
        answer = self._respond.remote(routing_key(body), told, body)
        leaving = asyncio.ensure_future(receive())
        coming: asyncio.Future[Any] | None = None
        begun = False
        try:
            while True:
                coming = asyncio.ensure_future(anext(answer, None))
                await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done() or (message := coming.result()) is None:
                    return
                await send(message)
                begun = True
        except RayError as error:
            if begun:
                raise
            problem = RequestError(
                503, f"a replica has ended: {type(error).__name__}", code="replica"
            )
            await problem.response()(scope, receive, send)
        finally:
            if coming is not None and not coming.done():
                answer.cancel()
                coming.cancel()
            leaving.cancel()


def forwarding(handle: Any, limits: RequestLimits) -> Starlette:
    """The application that stands before the replicas, and checks what their guard would."""
    guard = Middleware(Guard, limits=limits)
    return Starlette(routes=[Route("/{path:path}", Forwarder(handle))], middleware=[guard])


async def responses(app: App, scope: Mapping[str, Any], body: bytes) -> AsyncGenerator[Message]:
    """What an application answers to a request.

    Closing the generator tells the application that the client has left, and waits for its end.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(dict(scope), receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        left.set()
        await running
