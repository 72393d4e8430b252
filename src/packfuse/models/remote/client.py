"""HTTP to one server, with errors that name the member and the address."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from packfuse.errors import ServerError
from packfuse.process import on_fork

MAX_CONNECTIONS = 32
"""Most requests of one member that are under way at the same time."""

_CONNECT_SECONDS = 5.0
_DETAIL = 300
"""Most characters of a server's own error that are repeated."""


class Client:
    """A pool of connections to one server.

    Requests only read, so one that meets a closed connection is sent once more.
    """

    def __init__(self, name: str, url: str, key: str | None, timeout: float) -> None:
        """No connection is opened yet.

        Args:
            name: The member's name, for errors.
            url: Address of the server.
            key: Its key; None for none.
            timeout: Longest time without an answer, in seconds.
        """
        self.name, self.url = name, url.rstrip("/")
        self._key, self._timeout = key, timeout
        self._closing: weakref.finalize[..., Client] | None = None
        self._renew()
        on_fork(self._renew)

    def _renew(self) -> None:
        """New connections; a forked child must not use those of its parent, nor end them."""
        if self._closing:
            self._closing.detach()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )
        self._closing = weakref.finalize(self, self._http.close)

    def renamed(self, name: str) -> Client:
        """A connection of its own to the same server, for a member of another name."""
        return Client(name, self.url, self._key, self._timeout)

    def get(self, path: str) -> Any:
        """The JSON at a path; None if the server has no such path.

        Raises:
            ServerError: if the server cannot be reached, refuses, or answers no JSON.
        """
        return self._json(path, lambda: self._http.get(path), optional=True)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers; see `get`."""
        return self._json(path, lambda: self._http.post(path, json=body), optional=False)

    def refusal(self, path: str, body: Mapping[str, Any]) -> str:
        """What the server says when it refuses a request; "" if it accepts it.

        Raises:
            ServerError: if it cannot be reached, or the key is wrong.
        """
        found = self._sent(path, lambda: self._http.post(path, json=body))
        self._check_key(found)
        return "" if found.is_success else found.text or str(found.status_code)

    def error(self, problem: str, hint: str = "") -> ServerError:
        """An error of this member."""
        message = f"member {self.name!r} at {self.url}: {problem}"
        return ServerError(message, member=self.name, hint=hint)

    def _json(self, path: str, send: Callable[[], httpx.Response], *, optional: bool) -> Any:
        found = self._sent(path, send)
        self._check_key(found)
        if optional and found.status_code in (404, 405, 501):
            return None
        if not found.is_success:
            detail = " ".join(found.text.split())[:_DETAIL]
            raise self.error(f"status {found.status_code} at {path}: {detail}")
        try:
            return found.json()
        except ValueError as error:
            raise self.error(f"no JSON at {path}", "is this the address of the server?") from error

    def _check_key(self, found: httpx.Response) -> None:
        if found.status_code in (401, 403):
            raise self.error(
                f"status {found.status_code}: the key is wrong or missing",
                "api_key_env names the environment variable that holds it",
            )

    def _sent(self, path: str, send: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            try:
                return send()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                return send()  # servers close idle connections
        except httpx.ConnectError as error:
            raise self.error(f"nobody listens there ({error})", "start the server") from error
        except httpx.TimeoutException as error:
            raise self.error(
                f"no answer within {self._timeout:g} s at {path}",
                "raise its timeout, or restart it",
            ) from error
        except httpx.HTTPError as error:
            raise self.error(f"{type(error).__name__} at {path}: {error}") from error
