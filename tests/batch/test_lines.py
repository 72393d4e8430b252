"""Requests of a batch: both forms, and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from packfuse.batch.lines import CHAT, TEXT, BatchLine, read_batch
from packfuse.errors import DataError

MESSAGES = [{"role": "user", "content": "Hello"}]


def read(folder: Path, *lines: Any) -> list[BatchLine]:
    """The requests of a file with these lines."""
    path = folder / "in.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(texts))
    return read_batch(path, 77)


def test_a_body_alone_is_a_request(tmp_path: Path) -> None:
    chat, text = read(
        tmp_path, {"messages": MESSAGES, "seed": 3}, {"custom_id": "a", "prompt": "Hi"}
    )
    assert (chat.custom_id, chat.url, chat.max_tokens) == ("line-1", CHAT, 77)
    assert chat.body == {"messages": MESSAGES, "seed": 3}
    assert (text.custom_id, text.url, text.max_tokens) == ("a", TEXT, 77)
    assert text.body == {"prompt": "Hi"}


def test_openais_form_is_a_request(tmp_path: Path) -> None:
    chat = {"custom_id": "x", "method": "POST", "url": CHAT, "body": {"messages": MESSAGES}}
    text = {"custom_id": "y", "method": "POST", "url": TEXT, "body": {"prompt": "Hi"}}
    found = read(tmp_path, chat, text)
    assert [(one.custom_id, one.url, one.max_tokens, one.problem) for one in found] == [
        ("x", CHAT, 77, ""),
        ("y", TEXT, 16, ""),
    ]
    assert [dict(one.body) for one in found] == [chat["body"], text["body"]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "not JSON: Expecting"),
        (b"[1]", "not a JSON object"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        ({"prompt": "\ud800"}, "field 'prompt' holds half a character"),
        ({"custom_id": 3, "prompt": "a"}, "custom_id=3 is not a text"),
        ({"custom_id": "", "prompt": "a"}, "custom_id='' is not a text"),
        ({"custom_id": "a"}, "there are no prompt and no messages"),
        ({"prompt": "a", "messages": MESSAGES}, "there are prompt and messages"),
        ({"url": "/v1/embeddings", "body": {}}, "url='/v1/embeddings' is not known"),
        ({"url": CHAT, "body": []}, r"body=\[\] is not an object"),
        ({"url": CHAT}, "body=None is not an object"),
        ({"url": CHAT, "method": "GET", "body": {}}, "method='GET' is not POST"),
        ({"url": CHAT, "body": {}, "custom": 1}, "there is no field 'custom'"),
    ],
)
def test_a_broken_line_is_named_and_stops_no_other(tmp_path: Path, line: Any, message: str) -> None:
    first, broken, last = read(tmp_path, {"prompt": "a"}, line, {"prompt": "b"})
    assert (first.problem, last.problem) == ("", "")
    with pytest.raises(AssertionError, match=f"^{message}"):
        raise AssertionError(broken.problem)
    assert broken.number == 2


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    found = read(tmp_path, b'\xef\xbb\xbf{"prompt": "a"}\r', b"", b"  \t", {"prompt": "b"})
    assert [(one.number, one.custom_id, one.problem) for one in found] == [
        (1, "line-1", ""),
        (4, "line-4", ""),
    ]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"in\.jsonl is empty"):
        read(tmp_path, content)


def test_two_lines_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lines 1 and 3: both have the id 'line-3'"):
        read(tmp_path, {"custom_id": "line-3", "prompt": "a"}, b"", {"prompt": "b"})


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        read_batch(tmp_path / "none.jsonl", 5)


def test_ids_tell_requests_apart(tmp_path: Path) -> None:
    one = {"custom_id": "a", "prompt": "x", "seed": 1}
    others = [{**one, "seed": 2}, {**one, "prompt": "y"}, {**one, "custom_id": "b"}]
    ids = {read(tmp_path, line)[0].id for line in [one, *others]}
    assert len(ids) == 4
    again = {"seed": 1, "prompt": "x", "custom_id": "a"}
    assert read(tmp_path, again)[0].id == read(tmp_path, one)[0].id
