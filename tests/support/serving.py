"""Servers on this machine: an application in a thread, and a command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from packfuse import Pack
from packfuse.server.app import Limits, create_app
from packfuse.server.packs import Served
from packfuse.server.serving import bound, configured


@contextmanager
def running(app: Any, port: int = 0) -> Iterator[str]:
    """The address of an application, which a thread serves with the settings of the shipped one."""
    listening = bound("127.0.0.1", port)
    server = uvicorn.Server(configured(app, grace=10))
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
def command_running(
    *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of a command of `packfuse` that listens, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "packfuse", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line.strip())
        if line.startswith("http://"):
            break
    try:
        assert lines[-1].startswith("http://"), lines
        yield process, lines[-1]
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serving(served: Served, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server that answers with these packs."""
    with running(create_app(served, limits)) as url:
        yield url


@contextmanager
def served_pack(pack: Pack, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server that answers with one pack, called "tiny"."""
    with serving(Served.ready(tiny=pack), limits) as url:
        yield url
