"""Members behind the member protocol: in a thread of this process, or in a process of their own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from packfuse.models.loading import load_member
from packfuse.models.member import Member
from packfuse.models.remote import PeerMember
from packfuse.server.member import MemberLimits, create_member_app
from packfuse.settings import LoadSettings, MemberSettings
from tests.support.serving import command_running, running


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
    arguments = ("member", model, "--port", str(port), *options)
    with command_running(*arguments, **environment) as (process, url):
        yield MemberProcess(url, process)


@contextmanager
def member_server(member: Member, *, port: int = 0, **limits: Any) -> Iterator[str]:
    """The address of a server in this process."""
    with running(create_member_app(member, MemberLimits(**limits)), port) as url:
        yield url


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
