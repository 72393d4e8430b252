"""What the server of a member answers to requests, good and bad."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packfuse.models.member import Read
from packfuse.models.remote.peer.wire import (
    CONTENT_TYPE,
    READ,
    Answer,
    ReadHeader,
    Request,
    RowHeader,
    answers,
    prefix_digest,
    subset_digest,
)
from tests.support.member_server import card, member_server
from tests.support.small import small_pack

IDS = [60, 61, 62, 63]
CLIENT = "0123456789"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with member_server(small_pack().members[1], max_body=20_000) as found:
        yield found


@pytest.fixture(scope="module")
def state(url: str) -> str:
    found: str = card(url)["state"]
    return found


def body(state: str, *rows: dict[str, Any], ids: Any = None, **more: Any) -> bytes:
    """A request that reads `IDS` in every row."""
    given = [{"session": k, "start": 0, "prefix": "", "tokens": len(IDS), **row}
             for k, row in enumerate(rows)]  # fmt: skip
    subsets = more.pop("subsets", {})
    header = ReadHeader(
        **{"version": 1, "client": CLIENT, "state": state, **more},
        rows=[RowHeader(**row) for row in given],
    )
    counts = [[1] * (row.get("counts") or 0) for row in given]
    return Request(header, ids or [IDS] * len(rows), counts, subsets).encode()


http = httpx.Client()


@pytest.fixture(scope="module", autouse=True)
def _closing() -> Iterator[None]:
    yield
    http.close()


def post(url: str, content: bytes, kind: str = CONTENT_TYPE) -> httpx.Response:
    return http.post(url + READ, content=content, headers={"Content-Type": kind})


def answer(url: str, content: bytes) -> list[Answer]:
    found = post(url, content)
    assert found.status_code == 200, found.text
    return list(answers(iter([found.content]), 10**9))


def test_a_read_is_that_of_the_member(url: str, state: str) -> None:
    own = small_pack().members[1]
    (expected,) = own.read([Read(own.open(), IDS, 2)])
    first, done = answer(url, body(state, {"keep": 2}))
    assert torch.equal(first.tensors["logps"], expected)
    assert (first.header.counts, done.header.kind) == ([3, 4], "done")
    # The same again: a request may be repeated.
    again, _ = answer(url, body(state, {"keep": 2}))
    assert torch.equal(again.tensors["logps"], expected)


def test_a_session_that_is_not_there_is_said_to_be_gone(url: str, state: str) -> None:
    row = {"session": 77, "start": 2, "prefix": prefix_digest(IDS[:2])}
    (found,) = answer(url, body(state, row))
    assert (found.header.kind, found.header.gone) == ("gone", [0])


def test_a_session_with_other_tokens_is_gone(url: str, state: str) -> None:
    answer(url, body(state, {"session": 5}))
    good, bad = (
        answer(url, body(state, {"session": 5, "start": 2, "prefix": prefix_digest(ids)}))
        for ids in ([60, 61], [60, 99])
    )
    assert good[-1].header.kind == "done"
    assert bad[0].header.kind == "gone"


def test_a_subset_is_sent_once(url: str, state: str) -> None:
    ids = torch.arange(5, 105)
    row, name = {"subset": subset_digest(ids)}, subset_digest(ids)
    (unknown,) = answer(url, body(state, row))
    assert (unknown.header.kind, unknown.header.subsets) == ("gone", [name])
    for subsets in ({name: ids}, {}):
        first, _ = answer(url, body(state, row, subsets=subsets))
        assert first.tensors["logps"].shape == (1, 100)
    too_few: Tensor = torch.arange(3)
    assert post(url, body(state, row, subsets={name: too_few})).status_code == 400


def test_another_state_is_said_to_be_another_model(url: str, state: str) -> None:
    (found,) = answer(url, body("another", {}))
    assert found.header.kind == "changed"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": 9}, "version 9 .* this server speaks 1"),
    "no token": ({"rows": [{}], "ids": [[60, 61, 62, 10**6]]}, "token ids are 0 to"),
    "a negative token": ({"rows": [{}], "ids": [[60, 61, 62, -1]]}, "token ids are 0 to"),
    "twice a session": ({"rows": [{}, {"session": 0}]}, "a session in two rows"),
    "too long": ({"rows": [{"start": 5000}]}, "5004 tokens, of at most 512"),
    "more than read": ({"rows": [{"keep": 9}]}, "nothing is read"),
    "before the start": ({"rows": [{"start": 2, "counts": 1}]}, "nothing is read"),
    "fewer ids": ({"rows": [{}], "ids": [[60]]}, "4 numbers are needed"),
    "subset and counts": ({"rows": [{"subset": "x", "counts": 0}]}, "goes without counts"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests_are_refused_by_name(url: str, state: str, kind: str) -> None:
    changes, match = BAD[kind]
    rows = changes.get("rows", [{}])
    more = {name: value for name, value in changes.items() if name != "rows"}
    found = post(url, body(state, *rows, **more))
    assert found.status_code == 400
    assert re.search(match, found.json()["error"]["message"])


def test_what_is_no_request_is_refused(url: str, state: str) -> None:
    for content in (b"", b"{}", b"\0" * 100):
        assert post(url, content).status_code == 400
    assert post(url, body(state, {}), "application/json").status_code == 415
    assert post(url, b"\0" * 30_000).status_code == 413
    assert http.get(url + READ).status_code == 405
    assert http.post(url + "/packfuse/member/tokens", json={"text": 3}).status_code == 400


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_requests_harm_nobody(url: str, state: str, data: st.DataObject) -> None:
    damaged = bytearray(body(state, {"keep": 2}, {"counts": 1}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    found = post(url, bytes(damaged[:cut] if data.draw(st.booleans()) else damaged))
    assert found.status_code in (200, 400)
    assert answer(url, body(state, {}))[-1].header.kind == "done"
