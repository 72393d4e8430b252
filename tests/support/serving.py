"""Packs behind a real server on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from packfuse import Pack
from packfuse.server.app import Limits, create_app
from packfuse.server.packs import Served
from packfuse.server.serving import bound, configured


@contextmanager
def serving(served: Served, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server that answers with these packs."""
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(configured(create_app(served, limits), grace=10))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
        assert not thread.is_alive()


@contextmanager
def served_pack(pack: Pack, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server that answers with one pack, called "tiny"."""
    with serving(Served.ready(tiny=pack), limits) as url:
        yield url
