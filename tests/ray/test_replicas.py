"""Replicas come with the requests, and one that is killed is replaced, with its members."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from packfuse import Pack
from packfuse.settings import PackConfig, RayPlace

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")

from ray import serve  # noqa: E402

from packfuse.ray.application import DeployOptions  # noqa: E402
from packfuse.ray.deploying import deploy  # noqa: E402

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]
NAME = "grown"
MEMBER = "ray::MemberActor"
SECONDS = 180
"""Ray Serve adds a replica after half a minute of load."""


@pytest.fixture(scope="module")
def url(cluster: Any, config: PackConfig) -> Iterator[str]:
    """An application of one replica, to which a second may be added."""
    del cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = DeployOptions(min_replicas=1, max_replicas=2, running=1, place=RayPlace(num_cpus=0.5))
    deploy({"mine": config}, options, name=NAME, port=port)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def post(url: str, tokens: int) -> httpx.Response:
    body = {"prompt": "Once upon a time", "max_tokens": tokens}
    return httpx.post(url + "/v1/completions", json=body, timeout=SECONDS)


def running() -> int:
    """Replicas that answer, as Ray Serve counts them."""
    return serve.status().applications[NAME].deployments["packs"].replica_states.get("RUNNING", 0)


def processes(title: str) -> set[int]:
    """Ids of processes with a title, as Ray sets it."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith(title):
            found.add(process.pid)
    return found


def replicas() -> set[int]:
    return processes(f"ray::ServeReplica:{NAME}:packs")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, (serve.status(), replicas(), processes(MEMBER))
        time.sleep(0.2)


def test_a_replica_is_added_while_there_are_more_requests(url: str) -> None:
    assert (running(), len(replicas())) == (1, 1)
    grown = threading.Event()

    def client() -> int:
        answered = 0
        while not grown.is_set():
            assert post(url, 100).status_code == 200
            answered += 1
        return answered

    with ThreadPoolExecutor(4) as clients:
        loads = [clients.submit(client) for _ in range(4)]
        try:
            until(lambda: running() == 2 or any(load.done() for load in loads))
        finally:
            grown.set()
        assert min(load.result() for load in loads) > 0
    assert (running(), len(replicas())) == (2, 2)


def test_a_replica_that_is_killed_is_replaced(url: str, config: PackConfig) -> None:
    until(lambda: len(processes(MEMBER)) == len(replicas()) == running())
    before, members = replicas(), processes(MEMBER)
    for process in before:
        os.kill(process, signal.SIGKILL)
    until(lambda: not before & replicas() and len(replicas()) == len(before) == running())
    # The members of the replicas that are gone have ended with them.
    until(lambda: not members & processes(MEMBER) and len(processes(MEMBER)) == len(before))
    local = config.replace(members=[member.replace(ray=None) for member in config.members])
    alone = Pack._load(local, progress=False).generate("Once upon a time", max_new_tokens=6)
    for _ in range(4):
        found = post(url, 6)
        assert found.status_code == 200, found.text
        assert found.json()["choices"][0]["text"] == alone.text
