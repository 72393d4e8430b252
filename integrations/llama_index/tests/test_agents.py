"""LlamaIndex's agents over a pack: scripted members, and the starter pack."""

from __future__ import annotations

import asyncio
import json

import pytest
from llama_index.core.agent import ReActChatFormatter, ReActOutputParser
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from llama_index.llms.packfuse import PackFuse, collect_fusion

from packfuse import Pack
from tests.support.scripted import scripted_pack

pytestmark = [
    # LlamaIndex's workflows use what pydantic and they themselves have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deleted before being closed:ResourceWarning"),
    pytest.mark.usefixtures("swept"),
]


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


TOOLS = [FunctionTool.from_defaults(multiply)]
ONE = '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'
TWO = ONE + '\n<tool_call>\n{"name": "multiply", "arguments": {"a": 2, "b": 3}}\n</tool_call>'


def calling(prompt: str) -> str:
    """The answers of a function-calling model."""
    if '"content": "42"' in prompt:
        return "It is 42."
    return TWO if "both" in prompt else ONE


def reasoning(prompt: str) -> str:
    """The answers of a model that reasons in text."""
    if "Observation: 42" in prompt:
        return "Thought: I can answer without using any more tools.\nAnswer: It is 42."
    return 'Thought: I need a tool.\nAction: multiply\nAction Input: {"a": 6, "b": 7}\n'


@pytest.fixture(scope="module")
def caller() -> Pack:
    """A pack that calls tools."""
    return scripted_pack(calling)


@pytest.fixture(scope="module")
def reasoner() -> Pack:
    """A pack that reasons in text."""
    return scripted_pack(reasoning)


def run(agent, message: str, **arguments):
    """The output of an agent, its events, and the fusion records of its steps."""

    async def go():
        with collect_fusion() as fusion:
            handler = agent.run(message, **arguments)
            events = [event async for event in handler.stream_events()]
            return await handler, events, fusion.records

    return asyncio.run(go())


def results(events) -> list[tuple]:
    """The tools that were called, with arguments and results."""
    return [
        (event.tool_name, event.tool_kwargs, event.tool_output.content)
        for event in events
        if isinstance(event, ToolCallResult)
    ]


@pytest.mark.parametrize("streaming", [True, False])
def test_function_agent(caller, streaming):
    agent = FunctionAgent(tools=TOOLS, llm=PackFuse(pack=caller), streaming=streaming)
    output, events, records = run(agent, "What is 6 times 7?")
    assert str(output) == "It is 42."
    assert results(events) == [("multiply", {"a": 6, "b": 7}, "42")]
    assert len(records) == 2
    steps = [event for event in events if isinstance(event, AgentOutput)]
    assert [step.raw["fusion"] for step in steps] == records
    assert json.loads(json.dumps(output.raw)) == output.raw
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(event.delta for event in streamed) == ("It is 42." if streaming else "")


def test_function_agent_makes_parallel_calls(caller):
    agent = FunctionAgent(tools=TOOLS, llm=PackFuse(pack=caller))
    _, events, _ = run(agent, "What are both?")
    assert sorted(results(events), key=lambda result: result[2]) == [
        ("multiply", {"a": 6, "b": 7}, "42"),
        ("multiply", {"a": 2, "b": 3}, "6"),
    ]
    agent = FunctionAgent(tools=TOOLS, llm=PackFuse(pack=caller), allow_parallel_tool_calls=False)
    _, events, _ = run(agent, "What are both?")
    assert results(events) == [("multiply", {"a": 6, "b": 7}, "42")]


def test_function_agent_keeps_its_calls_in_memory(caller):
    agent = FunctionAgent(tools=TOOLS, llm=PackFuse(pack=caller))

    async def go():
        context = Context(agent)
        await agent.run("What is 6 times 7?", ctx=context)
        memory = await context.store.get("memory")
        return await memory.aget()

    roles = [message.role.value for message in asyncio.run(go())]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_function_agent_does_not_run_a_call_that_was_cut_off(caller):
    agent = FunctionAgent(tools=TOOLS, llm=PackFuse(pack=caller, max_new_tokens=20))
    output, events, _ = run(agent, "What is 6 times 7?")
    assert results(events) == []
    [broken] = output.response.additional_kwargs["invalid_tool_calls"]
    assert broken["name"] == "multiply"


def test_function_agent_needs_the_flag(caller):
    llm = PackFuse(pack=caller, is_function_calling_model=False)
    with pytest.raises(ValueError, match="FunctionCallingLLM"):
        run(FunctionAgent(tools=TOOLS, llm=llm), "What is 6 times 7?")


def test_react_agent(reasoner):
    llm = PackFuse(pack=reasoner, is_function_calling_model=False)
    output, events, records = run(ReActAgent(tools=TOOLS, llm=llm), "What is 6 times 7?")
    assert str(output) == "It is 42."
    assert results(events) == [("multiply", {"a": 6, "b": 7}, "42")]
    assert len(records) == 2


def test_predict_and_call_without_the_flag_reasons_in_text(reasoner):
    llm = PackFuse(pack=reasoner, is_function_calling_model=False)
    parts = {"react_chat_formatter": ReActChatFormatter(), "output_parser": ReActOutputParser()}
    message = ChatMessage("What is 6 times 7?")
    response = asyncio.run(llm.apredict_and_call(TOOLS, message, **parts))
    assert response.response == "42"


@pytest.mark.parametrize(("flag", "kind"), [(True, FunctionAgent), (False, ReActAgent)])
def test_agent_workflow_chooses_by_the_flag(caller, reasoner, flag, kind):
    llm = PackFuse(pack=caller if flag else reasoner, is_function_calling_model=flag)
    workflow = AgentWorkflow.from_tools_or_functions(TOOLS, llm=llm)
    assert [type(agent) for agent in workflow.agents.values()] == [kind]
    output, events, records = run(workflow, "What is 6 times 7?")
    assert str(output) == "It is 42."
    assert results(events) == [("multiply", {"a": 6, "b": 7}, "42")]
    assert len(records) == 2


@pytest.mark.slow
def test_function_agent_on_the_starter_pack(starter):
    llm = PackFuse(pack=starter, max_new_tokens=40)
    agent = FunctionAgent(tools=TOOLS, llm=llm, initial_tool_choice="multiply")
    output, events, records = run(agent, "What is 6 times 7?")
    [(name, arguments, product)] = results(events)
    assert name == "multiply"
    assert int(product) == arguments["a"] * arguments["b"]
    assert len(records) == 2
    assert records[0]["members"] == starter.names
    assert output.response.content


def test_react_agent_on_the_starter_pack(starter):
    llm = PackFuse(pack=starter, max_new_tokens=16, is_function_calling_model=False)
    output, _, records = run(ReActAgent(tools=TOOLS, llm=llm), "What is 6 times 7?")
    assert output.response.content
    assert sum(records[0]["weights"].values()) == pytest.approx(1)
