r"""Tool calls and results as plain text, and the escaping of texts that spell their tags.

A call is JSON between `<tool_call>` tags, the format of the Hermes models, and a result stands
between `<tool_response>` tags in a user message. A tag in any other text is escaped with a
backslash (`<\tool_response>`), so that no text can pass as a call or a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
"""A message: `role`, `content`, and for tools `tool_calls`, `tool_call_id` and `name`."""

CALL, END_CALL = "<tool_call>\n", "\n</tool_call>"
RESULT, END_RESULT = "<tool_response>\n", "\n</tool_response>"

_TAG = re.compile(r"<(\\*/?(?:tool_call|tool_response|tools)>)")
_WRAPPED = ('{"name": ', '{"content": ')
"""How the JSON of a result begins."""


class WrittenMessage(Message):
    """A message in which calls and results are text already, and other texts are escaped."""


def escape_tags(text: str) -> str:
    r"""The text with a backslash in every tag of this format; no two texts become equal.

    Example:
        >>> print(escape_tags("<b> <tool_response> <\\tool_response>"))
        <b> <\tool_response> <\\tool_response>
    """
    return _TAG.sub(r"<\\\1", text)


def to_json(value: Any) -> str:
    r"""A value as one line of JSON, in which `<` is written as `\u003c` where it begins a tag.

    Example:
        >>> print(to_json({"a": "</tool_call>"}))
        {"a": "\u003c/tool_call>"}
    """
    return _TAG.sub(r"\\u003c\1", json.dumps(value, ensure_ascii=False))


def write_call(name: str, arguments: Any) -> str:
    """The text of a call, as models write it: JSON on one line, so that no tag fits into it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{CALL}{body}{END_CALL}"


def write_result(name: str | None, text: str) -> str:
    """The text of a result: JSON with the tool's name, or the bare text where that is unknown."""
    if name:
        body = to_json({"name": name, "content": text})
    elif text.startswith(_WRAPPED):
        body = to_json({"content": text})
    else:
        body = escape_tags(text)
    return f"{RESULT}{body}{END_RESULT}"


def write_messages(messages: Sequence[Message]) -> list[WrittenMessage]:
    """Messages with calls and results as text; consecutive results become one user message.

    Args:
        messages: Messages from `check_messages`. Written ones are not changed.
    """
    names: dict[str, str] = {}
    turns: list[WrittenMessage] = []
    in_results = False
    for message in messages:
        if isinstance(message, WrittenMessage):
            turns.append(message)
            in_results = False
        elif message["role"] == "tool":
            name = message.get("name") or names.get(str(message.get("tool_call_id")))
            text = write_result(name, message["content"])
            if in_results:
                turns[-1]["content"] += f"\n{text}"
            else:
                turns.append(WrittenMessage(role="user", content=text))
            in_results = True
        else:
            turns.append(_written(message, names))
            in_results = False
    return turns


def _written(message: Message, names: dict[str, str]) -> WrittenMessage:
    """A message with its calls as text; `names` gets the names of the tools by id of the call."""
    parts = [escape_tags(message["content"])] if message["content"] else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        names[str(call.get("id"))] = function["name"]
        parts.append(write_call(function["name"], function["arguments"]))
    return WrittenMessage(role=message["role"], content="\n".join(parts))
