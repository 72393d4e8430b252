"""The answer to a read, as an ASGI application: messages as they come, until the client leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from packfuse.models.remote.peer.wire import Answer, AnswerHeader, WireError
from packfuse.server.limits import Message, Receive, Scope, Send
from packfuse.server.member.channel import Channel
from packfuse.server.member.host import Host
from packfuse.server.member.reading import begin
from packfuse.server.problems import RequestError

_BEAT_SECONDS = 1.0
"""How often a client that waits is told that the server still works."""

_WAIT = Answer(AnswerHeader(kind="wait")).encode()


class ReadStream:
    """Answers reads."""

    def __init__(self, host: Host, content_type: str) -> None:
        """Answer with a member.

        Args:
            host: The member.
            content_type: Type of the bodies, both ways.
        """
        self._host, self._type = host, content_type.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one read."""
        body = (await receive()).get("body", b"")  # `Guard` has read it all
        channel = Channel()
        try:
            self._begin(dict(scope["headers"]), body, channel)
        except RequestError as problem:
            await problem.response()(scope, receive, send)
            return
        # The client sends what follows only after this, so its requests stay in order.
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", self._type)],
            }
        )
        leaving = asyncio.ensure_future(receive())
        try:
            await self._send_all(channel, leaving, send)
        finally:
            channel.leave()
            leaving.cancel()

    def _begin(self, headers: dict[bytes, bytes], body: bytes, channel: Channel) -> None:
        if headers.get(b"content-type") != self._type:
            raise RequestError(415, f"send {self._type.decode()}")
        try:
            begin(self._host, body, channel)
        except WireError as error:
            raise RequestError(400, str(error)) from error

    async def _send_all(
        self, channel: Channel, leaving: asyncio.Future[Message], send: Send
    ) -> None:
        message: bytes | None = b""
        while message is not None:
            coming = asyncio.ensure_future(channel.next())
            waiting: set[asyncio.Future[Any]] = {coming, leaving}
            while not coming.done():
                await asyncio.wait(
                    waiting, timeout=_BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if leaving.done():
                    coming.cancel()
                    return
                if not coming.done():
                    await send({"type": "http.response.body", "body": _WAIT, "more_body": True})
            message = coming.result()
            await send(
                {
                    "type": "http.response.body",
                    "body": message or b"",
                    "more_body": message is not None,
                }
            )
