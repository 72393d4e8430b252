"""Requests that cannot be answered, clients that misbehave, and what the server says of itself."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from packfuse import Pack
from packfuse.errors import LoadError
from packfuse.server.app import Limits
from packfuse.server.packs import Served
from packfuse.tools import Turn
from tests.support.scripted import TEMPLATE
from tests.support.serving import served_pack, serving
from tests.support.small import small_pack
from tests.support.steps import settle

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
KEY = "secret-1234"


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, context=512, max_waiting=40)


@pytest.fixture(scope="module")
def url(pack: Pack) -> Iterator[str]:
    with served_pack(pack, Limits(max_body=20_000, timeout=1.0)) as found:
        yield found


@pytest.fixture(autouse=True)
def the_server_keeps_answering(pack: Pack, request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test of the shared server: it answers, and no call is left."""
    yield
    if "url" in request.fixturenames:
        url = request.getfixturevalue("url")
        found = httpx.post(url + CHAT, json={"messages": MESSAGES, "max_tokens": 2}, timeout=60)
        assert found.status_code == 200
    settle()
    assert (pack.scheduler.running, pack.scheduler.waiting) == (0, 0)


def refused(found: httpx.Response, status: int, param: str | None = None) -> str:
    """The message of an error in OpenAI's layout."""
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "Traceback" not in error["message"]
    return str(error["message"])


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LOOSE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": "Hello"}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "many"}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 2}, "n"),
    ({"seed": 1.5}, "seed"),
    ({"stop": [3]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 1000}}, "logit_bias"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": 1}, "presence_penalty"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tempratur": 1}, "tempratur"),
    ({"fusion": "unknown"}, "fusion"),
    ({"weighting": "unknown"}, "weighting"),
    ({"weights": {"nobody": 1}}, "weights"),
    ({"gate": 3}, "gate"),
    ({"gate": {"name": "nudge", "threshold": 1}}, "gate"),
    ({"gate": {"name": "nudge", "leader": "nobody"}}, "gate"),
    ({"gate": "nudge", "weights": {"short": 1.0}}, "weights"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice"),
    ({"response_format": {"type": "poem"}}, "response_format"),
    ({"response_format": LOOSE}, "response_format"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda given: str(given)[:50])
@pytest.mark.parametrize("stream", [False, True])
def test_unusable_fields_are_refused_by_name(
    url: str, fields: dict[str, Any], param: str, stream: bool
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, **({"stream": True} if stream else {}), **fields}
    if stream and param in ("stream", "stream_options"):
        return
    found = httpx.post(url + CHAT, json=body)
    assert found.status_code == 400, found.text
    assert found.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": 3}, {"prompt": []}, {"prompt": [1, "x"]}, {"prompt": [10**6]}, {"prompt": ""},
        {"prompt": "x", "logprobs": 99}, {"prompt": "x", "echo": True},
        {"prompt": "x", "best_of": 3},
        {"prompt": ["x"] * 500},
    ],
    ids=lambda given: str(given)[:40],
)  # fmt: skip
def test_unusable_completions_are_refused(url: str, fields: dict[str, Any]) -> None:
    refused(httpx.post(url + "/v1/completions", json=fields), 400, list(fields)[-1]
            if list(fields)[-1] != "stream" else "prompt")  # fmt: skip


def test_bodies_that_are_no_requests(url: str) -> None:
    kind = {"Content-Type": "application/json"}
    for text in (b"{", b"[1]", b"\xff", b"null", b"[" * 15_000):
        refused(httpx.post(url + CHAT, content=text, headers=kind), 400)
    refused(httpx.post(url + CHAT, content=b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert "20000" in refused(httpx.post(url + CHAT, content=b"x" * 30_000, headers=kind), 413)
    streamed = httpx.post(url + CHAT, content=iter([b"x" * 1000] * 30), headers=kind)
    refused(streamed, 413)
    refused(httpx.get(url + CHAT), 405)
    refused(httpx.get(url + "/v1/nothing"), 404)
    body = {"model": "other", "messages": MESSAGES}
    assert "tiny" in refused(httpx.post(url + CHAT, json=body), 404, "model")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_window_names_the_member_and_the_room(url: str, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 1500}], "stream": stream}
    message = refused(httpx.post(url + CHAT, json=body, timeout=60), 400, "messages")
    assert "'long'" in message
    assert "can read 512" in message


def test_keys() -> None:
    own = small_pack(template=TEMPLATE)
    with served_pack(own, Limits(api_key=KEY)) as url:
        body = {"messages": MESSAGES, "max_tokens": 1}
        for headers in ({}, {"Authorization": KEY}, {"Authorization": "Bearer wrong"},
                        {"Authorization": f"Basic {KEY}"}):  # fmt: skip
            assert KEY not in refused(httpx.post(url + CHAT, json=body, headers=headers), 401)
        refused(httpx.get(url + "/metrics"), 401)
        right = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(url + CHAT, json=body, headers=right, timeout=60).status_code == 200
        assert httpx.get(url + "/health").json()["status"] == "ready"
        assert "Content-Security-Policy" in httpx.get(url + "/").headers


def test_a_client_that_stalls_while_it_sends(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        client.settimeout(30)
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(pack: Pack, url: str, stream: bool) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {"messages": MESSAGES, "max_tokens": 400, "stream": stream,
         "constraint": {"type": "string", "minLength": 390}}
    )  # fmt: skip
    with socket.create_connection((host, int(port))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: pack.scheduler.running == 1)
        if stream:
            client.recv(100)
    wait_until(lambda: pack.scheduler.running == 0)


def test_a_client_that_does_not_read_holds_nobody_up(pack: Pack, url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"messages": MESSAGES, "max_tokens": 300, "stream": True, "trace": True})
    with socket.create_connection((host, int(port))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        other = httpx.post(url + CHAT, json={"messages": MESSAGES, "max_tokens": 3}, timeout=60)
        assert other.status_code == 200
        wait_until(lambda: pack.scheduler.running == 0)


def wait_until(reached: Any) -> None:
    for _ in range(6000):
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError("not reached within a minute")


def test_a_thousand_requests_at_once(pack: Pack, url: str) -> None:
    """Those that find no place are told to come again; all others get their answers."""
    expected = Turn(pack, MESSAGES, max_new_tokens=3).answer().text
    limits = httpx.Limits(max_connections=300)
    with httpx.Client(limits=limits, timeout=120) as client, ThreadPoolExecutor(300) as threads:
        body = {"messages": MESSAGES, "max_tokens": 3}
        found = list(threads.map(lambda _: client.post(url + CHAT, json=body), range(1000)))
    statuses = [one.status_code for one in found]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) > 40
    for one in found:
        if one.status_code == 200:
            assert one.json()["choices"][0]["message"]["content"] == expected
        else:
            refused(one, 429)
            assert int(one.headers["Retry-After"]) > 0


def test_metrics_and_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    own = small_pack(template=TEMPLATE)
    with caplog.at_level(logging.INFO, "packfuse.access"), served_pack(own) as url:
        for stream in (False, True):
            body = {"messages": MESSAGES, "max_tokens": 5, "stream": stream}
            assert httpx.post(url + CHAT, json=body, timeout=60).status_code == 200
        httpx.get(url + "/nowhere/else")
        text = httpx.get(url + "/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    model = ("model", "tiny")
    assert samples["packfuse_tokens_total", ("kind", "completion"), model] == 10
    assert samples["packfuse_time_to_first_token_seconds_count", model] == 2
    assert samples["packfuse_step_seconds_count", model] == 8
    assert samples["packfuse_agreement_share_count", model] == 2
    assert samples["packfuse_member_weight_count", ("member", "long"), model] == 2
    assert samples["packfuse_requests_total", ("route", CHAT), ("status", "200")] == 2
    assert samples["packfuse_requests_total", ("route", "other"), ("status", "404")] == 1
    assert samples[("packfuse_rows_running",)] == 0
    lines = [json.loads(record.message) for record in caplog.records]
    first = next(line for line in lines if line["path"] == CHAT)
    assert (first["status"], first["model"], first["completion_tokens"]) == (200, "tiny", 5)
    assert "Hello" not in caplog.text


def test_prompts_are_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    own = small_pack(template=TEMPLATE)
    with (
        caplog.at_level(logging.INFO, "packfuse.access"),
        served_pack(own, Limits(log_prompts=True)) as url,
    ):
        httpx.post(url + CHAT, json={"messages": MESSAGES, "max_tokens": 1}, timeout=60)
    assert "Hello" in caplog.text


def test_a_server_says_whether_it_is_ready() -> None:
    go = threading.Event()

    def load() -> dict[str, Pack]:
        go.wait()
        return {"one": small_pack(template=TEMPLATE), "two": small_pack(fusion="unite")}

    with serving(Served(load)) as url:
        found = httpx.get(url + "/health")
        assert (found.status_code, found.json()["status"]) == (503, "loading")
        body = {"messages": MESSAGES, "max_tokens": 1}
        assert "loading" in refused(httpx.post(url + CHAT, json=body), 503)
        go.set()
        wait_until(lambda: httpx.get(url + "/health").status_code == 200)
        assert [one["id"] for one in httpx.get(url + "/v1/models").json()["data"]] == ["one", "two"]
        body["model"] = "two"
        record = httpx.post(url + CHAT, json=body, timeout=60).json()["fusion"]
        assert record["fusion"]["name"] == "unite"


def test_a_server_that_cannot_load_says_why() -> None:
    def load() -> dict[str, Pack]:
        raise LoadError("no such model")

    with serving(Served(load)) as url:
        wait_until(lambda: httpx.get(url + "/health").json()["status"] == "failed")
        assert "no such model" in httpx.get(url + "/health").json()["error"]
        refused(httpx.post(url + CHAT, json={"messages": MESSAGES}), 503)


def test_web_pages_of_others_are_let_in_only_if_named() -> None:
    own = small_pack(template=TEMPLATE)
    ask = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    with served_pack(own) as url:
        found = httpx.options(url + CHAT, headers=ask)
        assert "access-control-allow-origin" not in found.headers
    with served_pack(own, Limits(allow_origins=["https://example.org"])) as url:
        found = httpx.options(url + CHAT, headers=ask)
        assert found.headers["access-control-allow-origin"] == "https://example.org"
