"""Checks the texts and messages of a call before anything is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.errors import PromptError
from packfuse.text.chats.tool_text import Message, WrittenMessage

ROLES = ("system", "user", "assistant", "tool")

_OTHER_NAMES = {"developer": "system", "function": "tool", "human": "user", "ai": "assistant"}
_IGNORED = ("tool_use", "tool_call", "invalid_tool_call", "reasoning", "thinking")
"""Types of blocks that are left out: calls are in `tool_calls`; reasoning is for one turn only."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_DEPTH = 100
"""Deepest nesting of plain data."""


def check_text(text: Any, place: str) -> str:
    """The text, which must be encodable as UTF-8.

    Args:
        text: The text.
        place: What it is, for errors.

    Raises:
        PromptError: for anything but text, and for a lone surrogate.

    Example:
        >>> check_text("naïve", "the prompt")
        'naïve'
    """
    if not isinstance(text, str):
        raise PromptError(f"{place} is not text: {type(text).__name__}", hint="pass a str")
    found = _SURROGATE.search(text)
    if found is not None:
        raise PromptError(
            f"{place} has a lone surrogate, U+{ord(found[0]):04X}, at character {found.start()}",
            hint='repair the text, for example with text.encode(errors="replace").decode()',
        )
    return text


def check_data(value: Any, place: str, depth: int = _DEPTH, *, strict: bool = True) -> Any:
    """A copy of plain data: text, numbers, lists and objects with text as keys.

    Args:
        value: The data.
        place: What it is, for errors.
        depth: Deepest nesting that is left.
        strict: Whether anything else is refused; if not, the name of its type stands for it, as in
            transformers.

    Raises:
        PromptError: for anything else, lone surrogates, and nesting that is too deep.
    """
    if depth < 0:
        raise PromptError(f"{place} is nested more than {_DEPTH} deep", hint="flatten it")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return str(check_text(value, place))
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            check_text(name, f"a key in {place}"): check_data(item, place, depth - 1, strict=strict)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [check_data(item, place, depth - 1, strict=strict) for item in value]
    if not strict:
        return f"<{type(value).__name__}>"
    raise PromptError(f"{place} is no JSON: it holds a {type(value).__name__}")


def check_messages(messages: Any) -> list[Message]:
    """`normalize_messages` for a chat that is to be answered.

    Raises:
        PromptError: for malformed messages, or messages that are all empty.

    Example:
        >>> check_messages([{"role": "developer", "content": "Be brief."}])
        [{'role': 'system', 'content': 'Be brief.'}]
    """
    checked = normalize_messages(messages)
    if not any(message["content"] or message.get("tool_calls") for message in checked):
        raise PromptError("all messages are empty", hint="give at least one character")
    return checked


def normalize_messages(messages: Any) -> list[Message]:
    """Copies of messages in one form: each has a known role and its content as text.

    Lists of text blocks are joined, the role `developer` becomes `system`, no content becomes the
    empty text, and the arguments of tool calls become objects.

    Raises:
        PromptError: for an empty list, anything that is no message, a missing or unknown role,
            content that is not text, or malformed tool calls.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise PromptError(
            f"a chat is a list of messages, not {type(messages).__name__}",
            hint='write [{"role": "user", "content": "Hello!"}]',
        )
    if not messages:
        raise PromptError("the list of messages is empty", hint="give at least one message")
    return [_message(number, message) for number, message in enumerate(messages)]


def content_text(content: Any, number: int) -> str:
    """The text of a message's content.

    Args:
        content: Text, a list of blocks, or None.
        number: Index of the message, for errors.

    Raises:
        PromptError: for images and other blocks that are not text.
    """
    place = f"message {number}"
    if content is None:
        return ""
    if isinstance(content, str):
        return check_text(content, place)
    parts = []
    for block in content if isinstance(content, Sequence) else [content]:
        if isinstance(block, str):
            parts.append(block)
        elif isinstance(block, Mapping) and isinstance(block.get("text"), str):
            parts.append(block["text"])
        elif not (isinstance(block, Mapping) and block.get("type") in _IGNORED):
            kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
            raise PromptError(
                f"{place} has a block of type {kind!r}", hint="a pack reads text only"
            )
    return check_text("".join(parts), place)


def _message(number: int, message: Any) -> Message:
    place = f"message {number}"
    if not isinstance(message, Mapping):
        raise PromptError(
            f"{place} is a {type(message).__name__}",
            hint='a message is {"role": "user", "content": "Hello!"}',
        )
    if "role" not in message:
        raise PromptError(f"{place} has no role", hint=f"roles: {', '.join(ROLES)}")
    role = message["role"]
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise PromptError(f"{place} has the role {role!r}", hint=f"roles: {', '.join(ROLES)}")
    kind = WrittenMessage if isinstance(message, WrittenMessage) else dict
    checked = kind(role=role, content=content_text(message.get("content"), number))
    calls = _calls(message.get("tool_calls"), place)
    if calls:
        checked["tool_calls"] = calls
    others = ("role", "content", "tool_calls")
    for name, value in message.items():
        if name not in others and value is not None:
            check_text(name, f"a key of {place}")
            checked[name] = check_data(value, f"{name!r} of {place}")
    return checked


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Tool calls as OpenAI's API has them, with arguments as an object."""
    if calls is None:
        return []
    if not isinstance(calls, list | tuple):
        raise PromptError(f"the tool_calls of {place} are a {type(calls).__name__}, not a list")
    return [_call(call, f"tool call {index} of {place}") for index, call in enumerate(calls)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise PromptError(
            f"{place} names no function",
            hint='write {"type": "function", "function": {"name": ..., "arguments": {...}}}',
        )
    check_text(name, f"the name in {place}")
    arguments = function.get("arguments", function.get("args"))
    checked: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        checked = {"id": check_text(str(call["id"]), f"the id of {place}"), **checked}
    own = _arguments(arguments, f"the arguments of {place}")
    return {**checked, "function": {"name": name, "arguments": own}}


def _arguments(arguments: Any, place: str) -> Any:
    """Arguments as an object, also where they were given as JSON text; other text stays text."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(check_text(arguments, place) or "{}")
        except ValueError:
            return arguments
        except RecursionError as error:
            raise PromptError(f"{place} are nested too deep", hint="flatten them") from error
    elif not isinstance(arguments, Mapping):
        raise PromptError(
            f"{place} are a {type(arguments).__name__}", hint="pass an object or its JSON"
        )
    return check_data(arguments, place)
