"""Errors as OpenAI's API writes them: a status, and a body that names the field."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from packfuse.errors import BusyError, ClosedError, ForkError, MemberError, PackError

RETRY_SECONDS = 1
"""What a client is told to wait where too many calls wait already, in seconds."""

_SERVER_ERRORS = (MemberError, ForkError)


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: The field; None if it is none of them.
        code: A short name of the problem, for programs.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        """See the attributes."""
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The response."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def problem_of(error: BaseException, fields: Iterable[str] = ()) -> RequestError:
    """What an error of a call is for the client.

    Args:
        error: The error.
        fields: The fields of the request, of which the message may name one.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BusyError):
        return RequestError(429, str(error), code="busy")
    if isinstance(error, ClosedError | CancelledError):
        return RequestError(503, "the server is shutting down", code="shutting_down")
    if isinstance(error, PackError) and not isinstance(error, _SERVER_ERRORS):
        return RequestError(400, str(error), _named(error.message, fields))
    if isinstance(error, PackError):
        return RequestError(500, str(error))
    # What it says may be about the inside of the server.
    return RequestError(500, f"the server failed: {type(error).__name__}")


_WORDS = {
    "tool_choice": "no tool is called",
    "messages": "message|role|content|chat|prompt",
    "prompt": "prompt",
    "weights": "weight",
    "tools": "tool",
    "response_format": "response format|JSON schema",
    "constraint": "constraint",
}
"""What messages call some fields, besides their names."""


def _named(message: str, fields: Iterable[str]) -> str | None:
    """The first of the fields that a message names, or else speaks of."""
    given = list(fields)
    for words in ({name: rf"\b{re.escape(name)}\b" for name in given}, _WORDS):
        found = {
            name: place.start()
            for name in given
            if name in words and (place := re.search(words[name], message))
        }
        if found:
            return min(found, key=lambda name: found[name])
    return None


def add_problems(app: FastAPI) -> None:
    """Errors in the layout of OpenAI's API, also for unknown paths and methods."""

    @app.exception_handler(RequestError)
    async def problem(_: Request, error: Any) -> JSONResponse:
        found: JSONResponse = error.response()
        return found

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Any) -> JSONResponse:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return RequestError(error.status_code, message).response()
