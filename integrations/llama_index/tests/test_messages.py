"""Conversion of messages: copied, as plain data, text only."""

from __future__ import annotations

import copy

import pytest
from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.packfuse.messages import plain_messages, plain_tools

from packfuse.errors import PromptError


@pytest.mark.parametrize(
    ("role", "plain"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("assistant", "assistant"),
        ("chatbot", "assistant"),
        ("model", "assistant"),
        ("function", "tool"),
        ("tool", "tool"),
    ],
)
def test_roles(role, plain):
    assert plain_messages([ChatMessage("x", role=role)]) == [{"role": plain, "content": "x"}]


def test_calls_and_results():
    call = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={"a": 1})
    messages = [
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), call]),
        ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": "c1", "name": "add"}),
    ]
    assert plain_messages(messages) == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
    ]


def test_calls_are_not_repeated():
    call = ToolCallBlock(tool_call_id="c1", tool_name="add", tool_kwargs={})
    old = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    both = ChatMessage(role="assistant", blocks=[call], additional_kwargs={"tool_calls": [old]})
    assert len(plain_messages([both])[0]["tool_calls"]) == 1
    before = ChatMessage("", role="assistant", additional_kwargs={"tool_calls": [old]})
    assert plain_messages([before])[0]["tool_calls"] == [old]


def test_text_blocks_are_joined_as_llama_index_joins_them():
    message = ChatMessage(
        blocks=[
            TextBlock(text="one"),
            CitableBlock(title="t", source="s", content=[TextBlock(text="two")]),
        ]
    )
    assert plain_messages([message])[0]["content"] == "one\ntwo"


@pytest.mark.parametrize(
    ("block", "kind"),
    [(ImageBlock(image=b"x" * 9), "image"), (AudioBlock(audio=b"x" * 9, format="wav"), "audio")],
)
def test_only_text_is_read(llm, block, kind):
    with pytest.raises(PromptError, match=rf"'{kind}'.*text only"):
        llm.chat([ChatMessage(blocks=[TextBlock(text="What is this?"), block])])


def test_the_callers_messages_are_not_changed(llm):
    messages = [
        ChatMessage("Be brief.", role="system"),
        ChatMessage(blocks=[TextBlock(text="Who"), TextBlock(text="is there?")]),
    ]
    before = copy.deepcopy(messages)
    llm.chat(messages)
    list(llm.stream_chat(messages))
    assert messages == before


def test_plain_tools_are_not_changed():
    def add(a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    [plain] = plain_tools([FunctionTool.from_defaults(add)])
    assert plain["function"]["name"] == "add"
    assert "Add two numbers." in plain["function"]["description"]
    assert plain["function"]["parameters"]["required"] == ["a"]
    assert plain_tools([plain]) == [plain]


def test_descriptions_may_be_long():
    tool = FunctionTool.from_defaults(lambda: 1, name="f", description="word " * 400)
    assert len(plain_tools([tool])[0]["function"]["description"]) == 2000
