"""Members behind the member protocol: in a thread of this process, or in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from packfuse.models.loading import load_member
from packfuse.models.member import Member
from packfuse.models.remote import PeerMember
from packfuse.server.member import MemberLimits, create_member_app
from packfuse.server.serving import bound, configured
from packfuse.settings import LoadSettings, MemberSettings


@dataclass(frozen=True, slots=True)
class MemberProcess:
    """A server that runs.

    Attributes:
        url: Its address.
        process: Its process.
    """

    url: str
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def member_process(
    model: str, *options: str, port: int = 0, **environment: str
) -> Iterator[MemberProcess]:
    """`packfuse member` in a process of its own."""
    command = [sys.executable, "-m", "packfuse", "member", model, "--port", str(port), *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line.strip())
        if line.startswith("http://"):
            break
    try:
        assert lines[-1].startswith("http://"), lines
        yield MemberProcess(lines[-1], process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def member_server(member: Member, *, port: int = 0, **limits: Any) -> Iterator[str]:
    """The address of a server in this process."""
    listening = bound("127.0.0.1", port)
    app = create_member_app(member, MemberLimits(**limits))
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


def card(url: str, **headers: str) -> dict[str, Any]:
    """What a server says of its member and its sessions."""
    found: dict[str, Any] = httpx.get(f"{url}/packfuse/member", headers=headers).json()
    return found


def until_sessions(url: str, count: int) -> None:
    """Wait until a server has so many sessions."""
    with httpx.Client() as http:
        for _ in range(250):
            found = http.get(f"{url}/packfuse/member").json()
            if found["sessions"] == count:
                return
            time.sleep(0.02)
    raise AssertionError(found)


def peer_of(url: str, name: str = "peer", **given: Any) -> PeerMember:
    """The member at an address, as a pack loads it."""
    found = load_member(name, MemberSettings(url=url, **given), LoadSettings())
    assert isinstance(found, PeerMember)
    return found
