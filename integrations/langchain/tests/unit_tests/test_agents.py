"""Agents, memories and graphs over a pack with scripted answers."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langchain_packfuse import ChatPackFuse, get_fusion_callback
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from packfuse import Pack
from tests.support.scripted import scripted_pack


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


class Product(BaseModel):
    """A product."""

    value: int


def script(prompt: str) -> str:
    """Calls the tool, then answers with its result."""
    if "Product" in prompt:
        text = '{"value": 391}'
        if '"name": "Product"' in prompt:
            return f'<tool_call>\n{{"name": "Product", "arguments": {text}}}\n</tool_call>'
        return text
    if prompt.rstrip().endswith("</tool_response>"):
        return "It is 391."
    if "name is" in prompt.rpartition("[user]")[2]:
        return "Nice to meet you."
    if "Who am I" in prompt:
        return "You are Ada." if "my name is Ada" in prompt else "I do not know."
    return '<tool_call>\n{"name": "multiply", "arguments": {"a": 17, "b": 23}}\n</tool_call>'


@pytest.fixture(scope="module")
def pack() -> Pack:
    return scripted_pack(script)


QUESTION: Any = {"messages": [{"role": "user", "content": "17 times 23?"}]}


def test_an_agent_calls_its_tool_and_answers(pack: Pack) -> None:
    agent = create_agent(ChatPackFuse(pack=pack), [multiply], system_prompt="Use tools.")
    with get_fusion_callback() as fusion:
        messages = agent.invoke(QUESTION)["messages"]
    assert [type(message) for message in messages] == [
        HumanMessage, AIMessage, ToolMessage, AIMessage,
    ]  # fmt: skip
    assert messages[2].content == "391"
    assert messages[-1].content == "It is 391."
    assert len(fusion.records) == 2
    assert messages[-1].response_metadata["fusion"] == fusion.records[-1]


async def test_an_agent_streams_its_messages(pack: Pack) -> None:
    agent = create_agent(ChatPackFuse(pack=pack), [multiply])
    chunks = []
    async for message, _ in agent.astream(QUESTION, stream_mode="messages"):
        chunks.append(message)
    messages = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    assert "".join(chunk.text for chunk in messages) == "It is 391."
    calls = [call for chunk in messages for call in chunk.tool_call_chunks]
    assert [call["args"] for call in calls] == ['{"a": 17, "b": 23}']
    assert sum("fusion" in chunk.response_metadata for chunk in messages) == 2


@pytest.mark.parametrize("strategy", [Product, ProviderStrategy(Product), ToolStrategy(Product)])
def test_an_agent_gives_a_structured_answer(pack: Pack, strategy: Any) -> None:
    agent = create_agent(ChatPackFuse(pack=pack), [], response_format=strategy)
    found = agent.invoke({"messages": [{"role": "user", "content": "17 times 23 is 391, no?"}]})
    assert found["structured_response"] == Product(value=391)


def test_a_checkpointer_keeps_the_chat_and_its_records(pack: Pack) -> None:
    agent = create_agent(ChatPackFuse(pack=pack), [], checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    agent.invoke({"messages": [("user", "Hello, my name is Ada")]}, thread)
    found = agent.invoke({"messages": [("user", "Who am I?")]}, thread)["messages"]
    assert found[-1].content == "You are Ada."
    assert found[1].response_metadata["fusion"]["members"] == ["deepseek", "mistral"]
    other: Any = {"configurable": {"thread_id": "2"}}
    found = agent.invoke({"messages": [("user", "Who am I?")]}, other)["messages"]
    assert found[-1].content == "I do not know."


# Deprecated, and what many still use.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_message_history_is_read(pack: Pack) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}

    def history(session_id: str) -> InMemoryChatMessageHistory:
        return histories.setdefault(session_id, InMemoryChatMessageHistory())

    chain = RunnableWithMessageHistory(ChatPackFuse(pack=pack), history)
    session: Any = {"configurable": {"session_id": "a"}}
    chain.invoke([HumanMessage("Hello, my name is Ada")], session)
    assert chain.invoke([HumanMessage("Who am I?")], session).content == "You are Ada."
    assert len(histories["a"].messages) == 4
