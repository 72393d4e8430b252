"""What a request has to pass before it is read: the key, the size, and the time to send it."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from packfuse.server.problems import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request has to pass in every server.

    Attributes:
        api_key: Key that requests must have; None for none.
        max_body: Largest body of a request, in bytes.
        timeout: Longest time for sending a body, in seconds.
    """

    api_key: str | None = None
    max_body: int = 4 * 2**20
    timeout: float = 30.0


OPEN = ("/", "/page.js", "/page.css", "/view.js", "/view.css", "/health")
"""Paths without a key: the page asks for it, and load balancers have none."""


class Guard:
    """An ASGI middleware that refuses requests without the key, too large, or sent too slowly."""

    def __init__(self, app: App, limits: RequestLimits) -> None:
        """Wrap an application.

        Args:
            app: The application.
            limits: See `RequestLimits`.
        """
        self._app, self._key = app, limits.api_key
        self._max, self._timeout = limits.max_body, limits.timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._body(headers, receive)
        except RequestError as problem:
            await problem.response()(scope, receive, send)
            return
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # the client's leaving
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_key(self, path: str, given: bytes) -> None:
        if self._key is None or path in OPEN:
            return
        scheme, _, key = given.partition(b" ")
        # The comparison takes the same time wherever the keys differ.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key, self._key.encode()):
            raise RequestError(401, "the API key is wrong or missing", code="invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max:
            raise self._too_large()
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the client left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max:
                        raise self._too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError as error:
            raise RequestError(408, f"the body took longer than {self._timeout:g} s") from error

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body is larger than {self._max} bytes", code="too_large")


def json_body(body: bytes, content_type: str) -> dict[str, Any]:
    """The object in a body.

    Raises:
        RequestError: for another type of content, or text that is no JSON object.
    """
    if "json" not in content_type.lower():
        # A web page can send other types to a server on its reader's machine without asking.
        raise RequestError(415, "send JSON, with the header Content-Type: application/json")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(found, dict):
        raise RequestError(400, "the body is not a JSON object", code="invalid_json")
    return found
