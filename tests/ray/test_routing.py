"""Where requests go, and what a replica is told of them; without a cluster."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("ray", reason="needs Ray: pip install 'packfuse[ray]'; make test-ray")

from packfuse.ray.forwarding import responses
from packfuse.ray.routing import BEGINNING, ranked, routing_key

pytestmark = pytest.mark.filterwarnings("default")
LOADS = st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 20), min_size=1, max_size=8)


@given(st.text(), LOADS)
def test_no_replica_is_forgotten_and_a_free_one_comes_first(
    key: str, loads: dict[str, int]
) -> None:
    order = ranked(key, loads)
    assert sorted(order) == sorted(loads)
    share = (sum(loads.values()) + 1) / len(loads)
    assert loads[order[0]] < math.ceil(1.25 * share)
    assert ranked(key, dict(reversed(loads.items()))) == order


@given(st.text(), st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=8))
def test_a_key_moves_only_with_its_replica(key: str, names: set[str]) -> None:
    order = ranked(key, dict.fromkeys(names, 0))
    for name in names:
        left = ranked(key, dict.fromkeys(names - {name}, 0))
        assert left == [other for other in order if other != name]


def test_half_a_character_is_a_key() -> None:
    key = routing_key(b'{"prompt": "\\ud800"}')
    assert sorted(ranked(key, {"a": 0, "b": 0})) == ["a", "b"]


def test_keys_are_spread() -> None:
    loads = dict.fromkeys("abcd", 0)
    first = [ranked(f"conversation {number}", loads)[0] for number in range(400)]
    assert min(first.count(name) for name in loads) > 60


def test_prompts_that_begin_alike_have_one_key() -> None:
    def chat(*texts: str, **more: Any) -> str:
        messages = [{"role": "user", "content": text} for text in texts]
        return routing_key(json.dumps({"messages": messages, **more}).encode())

    system = "x" * BEGINNING
    assert chat(system, "one") == chat(system, "two", seed=3)
    assert chat("one") != chat("two")
    assert chat("one", model="a") != chat("one", model="b")
    for body in (b"", b"[1]", b"{", b"\xff", b"[" * 100_000):
        assert routing_key(body) == ""


async def test_an_application_hears_when_its_client_leaves() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append((await receive())["body"].decode() + scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        heard.append((await receive())["type"])
        await asyncio.sleep(0)
        heard.append("ended")

    found = responses(app, {"path": "/x"}, b"body ")
    assert (await anext(found))["status"] == 200
    await found.aclose()
    assert heard == ["body /x", "http.disconnect", "ended"]


async def test_an_error_of_an_application_is_its_callers() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        async for _ in responses(app, {}, b""):
            pass
