"""Malformed texts, messages and tool calls are refused by their place, before anything is read."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, PackError, PromptError
from packfuse.text.chats.messages import check_messages
from packfuse.tools import Completion, Turn
from tests.support.small import small_pack

HALF = "a\ud83d b"
USER = {"role": "user", "content": "Hi"}


@functools.cache
def pack() -> Pack:
    return small_pack(template="{% for m in messages %}{{ m.content }}\n{% endfor %}")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


PLACES: dict[str, tuple[str, Callable[[], Any]]] = {
    "prompt": ("the prompt", lambda: pack().generate(HALF)),
    "batch": ("the prompt", lambda: pack().generate(["a", HALF])),
    "stream": ("the prompt", lambda: list(pack().stream(HALF))),
    "chat": ("message 1", lambda: pack().generate([USER, {**USER, "content": HALF}])),
    "chats": ("message 0", lambda: pack().generate([[USER], [{**USER, "content": HALF}]])),
    "block": ("message 0", lambda: pack().generate([{**USER, "content": [{"text": HALF}]}])),
    "key": ("message 0", lambda: pack().generate([{**USER, HALF: "x"}])),
    "field": ("'name' of message 0", lambda: pack().generate([{**USER, "name": HALF}])),
    "stop": ("a stop string", lambda: pack().generate("a", stop=[HALF])),
    "stop of a stream": ("a stop string", lambda: list(pack().stream("a", stop=HALF))),
    "count of text": ("the prompt", lambda: pack().count_tokens(HALF)),
    "count of chat": ("message 0", lambda: pack().count_tokens([{**USER, "content": HALF}])),
    "scored prompt": ("the prompt", lambda: pack().score(HALF, "a")),
    "scored text": ("the continuation", lambda: pack().score("a", HALF)),
    "weighed text": ("the prompt", lambda: pack().weigh(HALF)),
    "weighed chat": ("message 0", lambda: pack().weigh([{**USER, "content": HALF}])),
    "template": (
        "chat_template_kwargs['x']",
        lambda: pack().generate([USER], chat_template_kwargs={"x": [{"y": HALF}]}),
    ),
    "completion": ("the prompt", lambda: Completion(pack(), HALF)),
    "turn": ("message 0", lambda: Turn(pack(), [{**USER, "content": HALF}])),
    "name of a call": ("tool call 0 of message 0", lambda: Turn(pack(), [call(name=HALF)])),
    "arguments": ("tool call 0 of message 0", lambda: Turn(pack(), [call(arguments={"a": HALF})])),
}


def call(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", **function}}]}


@pytest.mark.parametrize("name", PLACES)
def test_a_lone_surrogate_is_refused_by_name(name: str) -> None:
    place, ask = PLACES[name]
    with pytest.raises(PackError) as caught:
        ask()
    assert isinstance(caught.value, PromptError | ConfigError)
    assert place in str(caught.value)
    assert "U+D83D" in str(caught.value)


MALFORMED: dict[str, Any] = {
    "no list": None,
    "a number": 5,
    "a message alone": USER,
    "text": "Hi",
    "nothing": [],
    "a text among messages": [USER, "Hi"],
    "None among messages": [USER, None],
    "no role": [{"content": "Hi"}],
    "an unknown role": [{"role": "narrator", "content": "Hi"}],
    "a role that is a list": [{"role": ["user"], "content": "Hi"}],
    "a number as content": [{**USER, "content": 5}],
    "an object as content": [{**USER, "content": {"text": 5}}],
    "an image": [{**USER, "content": [{"type": "image_url", "image_url": {}}]}],
    "tool calls are a number": [{"role": "assistant", "tool_calls": 5}],
    "tool calls are a text": [{"role": "assistant", "tool_calls": "x"}],
    "a call without name": [{"role": "assistant", "tool_calls": [{}]}],
    "a call that is None": [{"role": "assistant", "tool_calls": [None]}],
    "a call that is a text": [{"role": "assistant", "tool_calls": ["f"]}],
    "a call whose function is a text": [{"role": "assistant", "tool_calls": [{"function": "f"}]}],
    "a name that is a number": [call(name=5)],
    "arguments that are a set": [call(arguments={1})],
    "arguments that hold a set": [call(arguments={"a": {1}})],
    "arguments that are a list": [call(arguments=[1])],
    "keys that are numbers": [call(arguments={1: 2})],
    "deep arguments": [call(arguments={"a": nested(2_000)})],
    "deeper arguments": [call(arguments={"a": nested(200_000)})],
    "deep JSON": [call(arguments="[" * 2_000 + "]" * 2_000)],
    "deeper JSON": [call(arguments='{"a": ' + "[" * 200_000 + "]" * 200_000 + "}")],
    "a deep field": [{**USER, "x": nested(2_000)}],
    "an object of the caller": [{**USER, "x": object()}],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_messages_are_refused(name: str) -> None:
    chat = MALFORMED[name]
    with pytest.raises(PromptError):
        check_messages(chat)
    with pytest.raises(PromptError):
        Turn(pack(), chat)
    if isinstance(chat, str):
        return  # a plain prompt
    with pytest.raises(PromptError):
        pack().generate([[USER], chat])
    for ask in (pack().generate, pack().stream, pack().weigh, pack().count_tokens):
        with pytest.raises(PromptError):
            ask(chat)


@pytest.mark.parametrize(
    "given",
    [5, {"messages": []}, {"tokenize": False}, {1: 2}, {"tools": [5]}, {"x": {1: 2}}],
    ids=str,
)
def test_arguments_that_no_template_reads_are_refused(given: Any) -> None:
    with pytest.raises(ConfigError):
        pack().generate([USER], chat_template_kwargs=given)


def test_every_common_form_of_a_message_is_read() -> None:
    arguments = {"a": [1, {"b": None}]}
    forms = [
        {"function": {"name": "f", "arguments": arguments}},
        {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}},
        {"name": "f", "arguments": arguments},
        {"name": "f", "args": arguments},
    ]
    for form in forms:
        (message,) = check_messages([{"role": "assistant", "content": None, "tool_calls": [form]}])
        assert message["content"] == ""
        assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": arguments}
    blocks = [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]
    assert check_messages([{"role": "developer", "content": blocks}]) == [
        {"role": "system", "content": "abc"}
    ]
