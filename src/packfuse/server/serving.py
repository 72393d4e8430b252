"""Runs the application until it is told to end, and lets running answers finish."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from packfuse.errors import ConfigError
from packfuse.server.access_log import log

_BACKLOG = 2048
"""Most connections that wait to be accepted."""

_KEEP_ALIVE = 75
"""How long an idle connection stays open, in seconds.

Longer than clients and load balancers keep one, so that none sends a request on a connection that
the server is closing: httpx and the openai package keep it for 5 seconds, AWS for 60.
"""


def run(app: Any, listening: socket.socket, grace: int, say: Callable[[str], object]) -> None:
    """Serve an application until SIGINT or SIGTERM; then close the socket.

    Args:
        app: The application.
        listening: See `bound`.
        grace: Time for running answers at the end, in seconds.
        say: Called with the address.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    place = listening.getsockname()
    config = configured(app, grace)
    shown = f"[{place[0]}]" if ":" in place[0] else place[0]
    say(f"http://{shown}:{place[1]}")
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def configured(app: Any, grace: int) -> uvicorn.Config:
    """The settings of the HTTP server.

    Args:
        app: The application.
        grace: Time for running answers at the end, in seconds.
    """
    return uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=_KEEP_ALIVE,
        server_header=False,
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigError: if the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(_BACKLOG)  # from here on nobody else can take the address
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port or --host",
        ) from error
    return made
