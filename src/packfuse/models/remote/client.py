"""HTTP to one server, with errors that name the member and the address."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        self._key, self.timeout = key, timeout
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
            timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )
        self._closing = weakref.finalize(self, self._http.close)

    def renamed(self, name: str) -> Client:
        """A connection of its own to the same server, for a member of another name."""
        return Client(name, self.url, self._key, self.timeout)

    def get(self, path: str) -> Any:
        """The JSON at a path; None if the server has no such path.

        Raises:
            ServerError: if the server cannot be reached, refuses, or answers no JSON.
        """
        return self._json(path, lambda: self._http.get(path), optional=True)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers; see `get`."""
        return self._json(path, lambda: self._http.post(path, json=body), optional=False)

    def open(self, path: str, body: bytes, content_type: str) -> httpx.Response:
        """The answer to a body, of which `parts` are still to be read; it has to be closed.

        Raises:
            ServerError: if the server cannot be reached, or refuses.
        """
        headers = {"Content-Type": content_type}
        request = self._http.build_request("POST", path, content=body, headers=headers)
        found = self._sent(path, lambda: self._http.send(request, stream=True))
        try:
            if not found.is_success:
                with self._named(path):
                    found.read()
                self._check(path, found)
        except BaseException:
            found.close()
            raise
        return found

    def parts(self, path: str, opened: httpx.Response) -> Iterator[bytes]:
        """The body of an answer, as it arrives.

        Raises:
            ServerError: if it ends too early, or nothing arrives for too long.
        """
        with self._named(path):
            yield from opened.iter_raw()

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
        return ServerError(message, member=self.name, problem=problem, hint=hint)

    def _json(self, path: str, send: Callable[[], httpx.Response], *, optional: bool) -> Any:
        found = self._sent(path, send)
        if optional and found.status_code in (404, 405, 501):
            return None
        self._check(path, found)
        try:
            return found.json()
        except ValueError as error:
            raise self.error(f"no JSON at {path}", "is this the address of the server?") from error

    def _check(self, path: str, found: httpx.Response) -> None:
        self._check_key(found)
        if not found.is_success:
            detail = " ".join(found.text.split())[:_DETAIL]
            raise self.error(f"status {found.status_code} at {path}: {detail}")

    def _check_key(self, found: httpx.Response) -> None:
        if found.status_code in (401, 403):
            raise self.error(
                f"status {found.status_code}: the key is wrong or missing",
                "api_key_env names the environment variable that holds it",
            )

    def _sent(self, path: str, send: Callable[[], httpx.Response]) -> httpx.Response:
        with self._named(path):
            try:
                return send()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                return send()  # servers close idle connections

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Turn errors of the connection into errors of this member."""
        try:
            yield
        except httpx.ConnectError as error:
            raise self.error(f"nothing listens there ({error})", "start the server") from error
        except httpx.TimeoutException as error:
            raise self.late(path) from error
        except httpx.HTTPError as error:
            raise self.error(f"{type(error).__name__} at {path}: {error}") from error

    def late(self, path: str) -> ServerError:
        """The error of a server that takes too long."""
        problem = f"no answer within {self.timeout:g} s at {path}"
        return self.error(problem, "raise its timeout, or restart it")
