"""Forms of a chat that templates accept, and which messages a template leaves out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packfuse.text.chats.member_template import MemberTemplate
from packfuse.text.chats.tool_text import Message, write_messages

_Change = Callable[[list[Message]], list[Message]]

_FOLDED = "system messages and repeated roles were folded into one turn"


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A way to write a chat that says the same.

    Attributes:
        change: What is different from the chat as it was given, for the record; may be empty.
        steps: The changes, in order.
    """

    change: str
    steps: tuple[_Change, ...] = ()

    def apply(self, messages: list[Message]) -> list[Message]:
        """The messages in this form."""
        for step in self.steps:
            messages = step(messages)
        return messages


def forms(messages: Sequence[Message]) -> Iterator[ChatForm]:
    """The forms to try, the smallest change first; the first is the chat as it is."""
    yield ChatForm("")
    steps: tuple[_Change, ...] = ()
    said = ""
    if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        yield ChatForm("", (_text_arguments,))
        yield ChatForm("", (_no_content,))
        yield ChatForm("", (_text_arguments, _no_content))
        steps, said = (_written,), "tool calls and results were written as text"
        yield ChatForm(said, steps)
    for step, change in (
        (_only_first_system, "system messages after the first became user messages"),
        (fold_roles, _FOLDED),
    ):
        yield ChatForm(_and(said, change), (*steps, step))
    change = "an empty user message was put first"
    yield ChatForm(_and(said, change), (*steps, _user_first))
    yield ChatForm(_and(said, f"{_FOLDED}, and {change}"), (*steps, fold_roles, _user_first))


def _and(one: str, other: str) -> str:
    return f"{one}, and {other}" if one else other


def fold_roles(messages: Sequence[Message]) -> list[Message]:
    r"""Messages without the role system, and turns of one role joined.

    System text at the beginning goes to the first user turn, later system text becomes a user turn
    where it stands. This is for templates that allow neither a system role nor two turns of one
    role in a row.

    Example:
        >>> system, user = [{"role": r, "content": c} for r, c in (("system", "A"), ("user", "B"))]
        >>> fold_roles([system, user])
        [{'role': 'user', 'content': 'A\n\nB'}]
    """
    folded: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if folded and folded[-1]["role"] == role:
            parts = (folded[-1]["content"], message["content"])
            folded[-1]["content"] = "\n\n".join(part for part in parts if part)
        else:
            folded.append({**message, "role": role})
    return folded


def lost_messages(
    messages: Sequence[Message],
    form: ChatForm,
    template: MemberTemplate,
    arguments: Mapping[str, Any],
    open_end: bool,
) -> tuple[str, ...]:
    """Which messages a template leaves out, by number and role.

    The template renders a twin of the chat, with a word of its own for every text. So texts that
    occur elsewhere, too, are not taken for a message, and each kind of chat is looked at once.

    Raises:
        TemplateRefusalError: if the template refuses this form of the chat.
    """
    twin, words = _twin(messages)
    changed = json.dumps(form.apply(twin))
    text = _twin_text(template, changed, json.dumps(dict(arguments), sort_keys=True), open_end)
    lost = [number for number, own in words.items() if any(word not in text for word in own)]
    return tuple(f"message {number} ({messages[number]['role']})" for number in lost)


@functools.lru_cache(maxsize=256)
def _twin_text(template: MemberTemplate, messages: str, arguments: str, open_end: bool) -> str:
    return template.text(json.loads(messages), json.loads(arguments), open_end=open_end)


def _twin(messages: Sequence[Message]) -> tuple[list[Message], dict[int, list[str]]]:
    """The chat with a word in place of every text, and the words by number of the message."""
    words: dict[int, list[str]] = {}
    twin: list[Message] = []
    for number, message in enumerate(messages):
        own = [f"zq{number}x"] if message["content"].strip() else []
        copy = {**message, "content": "".join(own)}
        calls = []
        for index, call in enumerate(message.get("tool_calls", ())):
            name, value = f"zq{number}n{index}x", f"zq{number}v{index}x"
            own += [name, value] if call["function"]["arguments"] else [name]
            given = {"key": value} if call["function"]["arguments"] else {}
            calls.append({**call, "function": {"name": name, "arguments": given}})
        if calls:
            copy["tool_calls"] = calls
        words[number] = own
        twin.append(copy)
    return twin, words


def _text_arguments(messages: list[Message]) -> list[Message]:
    """Arguments as JSON text, as OpenAI's API has them; other templates expect objects."""
    return [
        {**message, "tool_calls": [_text_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _text_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _no_content(messages: list[Message]) -> list[Message]:
    """None in place of an empty content beside tool calls."""
    return [
        {**m, "content": None} if m.get("tool_calls") and not m["content"] else m for m in messages
    ]


def _written(messages: list[Message]) -> list[Message]:
    return list(write_messages(messages))


def _only_first_system(messages: list[Message]) -> list[Message]:
    """System messages after the first message as user messages."""
    return [
        {**message, "role": "user"} if number and message["role"] == "system" else message
        for number, message in enumerate(messages)
    ]


def _user_first(messages: list[Message]) -> list[Message]:
    """An empty user message before an assistant's that is first."""
    first = next((n for n, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if first < len(messages) and messages[first]["role"] != "assistant":
        return messages
    return [*messages[:first], {"role": "user", "content": ""}, *messages[first:]]
