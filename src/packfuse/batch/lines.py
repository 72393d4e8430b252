"""The requests of a batch: OpenAI's form, or the body of a request alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from packfuse.errors import DataError
from packfuse.jsonl import parse_object
from packfuse.registry import suggest
from packfuse.server.requests import TEXT_TOKENS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
_FORM = ("custom_id", "method", "url", "body")
_EXAMPLE = '{"prompt": ...}, {"messages": ...} or {"custom_id": ..., "url": ..., "body": ...}'


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request.

    Attributes:
        number: Its line in the file, from 1.
        custom_id: The id that its answer has: its own, or `line-7` in line 7.
        url: What is asked for: `/v1/chat/completions` or `/v1/completions`.
        body: The request.
        max_tokens: Most tokens of an answer, if the body does not say.
        problem: Why the line is no request, without its number; empty if it is one.
    """

    number: int
    custom_id: str
    url: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int = 0
    problem: str = ""

    @property
    def id(self) -> str:
        """The id of the answer, from all that the answer depends on besides the pack."""
        parts = [self.custom_id, self.url, self.body, self.max_tokens, self.problem]
        text = json.dumps(parts, sort_keys=True)
        return f"batch_req_{xxhash.xxh3_128_hexdigest(text.encode())}"


def read_batch(path: Path, max_tokens: int) -> list[BatchLine]:
    """The requests of a file; blank lines are skipped.

    A line that is no request is one with a `problem`, and its answer says so.

    Args:
        path: The file.
        max_tokens: Most tokens of an answer, if a line does not say. For texts in OpenAI's form it
            is 16, as in OpenAI's API.

    Raises:
        DataError: if the file cannot be read, has no lines, or two with the same id.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    texts = [(number, text) for number, text in enumerate(content.split(b"\n"), 1) if text.strip()]
    lines = [_line(text, number, max_tokens) for number, text in texts]
    if not lines:
        raise DataError(f"{path} is empty", hint=f"write one request a line: {_EXAMPLE}")
    seen: dict[str, int] = {}
    for line in lines:
        first = seen.setdefault(line.custom_id, line.number)
        if first != line.number:
            raise DataError(
                f"{path}, lines {first} and {line.number}: both have the id {line.custom_id!r}",
                hint="give each line a custom_id of its own, or none",
            )
    return lines


def _line(text: bytes, number: int, max_tokens: int) -> BatchLine:
    """The request of a line."""
    key = f"line-{number}"
    try:
        data = parse_object(text, _EXAMPLE)
        key = _custom_id(data, key)
        if "url" in data or "body" in data:
            url, body = _enveloped(data)
            tokens = max_tokens if url == CHAT else TEXT_TOKENS
        else:
            url, body = _bare(data)
            tokens = max_tokens
    except DataError as error:
        return BatchLine(number, key, problem=str(error))
    return BatchLine(number, key, url, body, tokens)


def _custom_id(data: Mapping[str, Any], default: str) -> str:
    given = data.get("custom_id", default)
    if not isinstance(given, str) or not given:
        raise DataError(f"custom_id={given!r} is not a text")
    return given


def _enveloped(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of a request in OpenAI's form."""
    for name in data:
        if name not in _FORM:
            raise DataError(f"there is no field {name!r}", hint=suggest(name, _FORM))
    url, body = data.get("url"), data.get("body")
    if data.get("method", "POST") != "POST":
        raise DataError(f"method={data['method']!r} is not POST")
    if url not in (CHAT, TEXT):
        raise DataError(f"url={url!r} is not known", hint=f"known: {CHAT}, {TEXT}")
    if not isinstance(body, dict):
        raise DataError(f"body={body!r} is not an object")
    return url, body


def _bare(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of a request that is written without an envelope."""
    body = {name: value for name, value in data.items() if name != "custom_id"}
    if ("prompt" in body) == ("messages" in body):
        which = "prompt and messages" if "prompt" in body else "no prompt and no messages"
        raise DataError(f"there are {which}", hint=f"write {_EXAMPLE}")
    return (TEXT if "prompt" in body else CHAT), body
