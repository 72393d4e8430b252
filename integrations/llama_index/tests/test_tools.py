"""Forced tool calls and structured output of random models are valid."""

import asyncio
import copy
import json
from typing import Literal

import pytest
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.packfuse import PackFuse, collect_fusion
from pydantic import BaseModel

from packfuse.errors import ConfigError

Color = Literal["red", "green", "blue"]


def paint(color: Color, dry: bool) -> str:
    """Paint the wall."""
    return f"{color} {dry}"


def wash(times: Literal[1, 2, 3]) -> str:
    """Wash the car."""
    return f"washed {times}"


class Wall(BaseModel):
    """A painted wall."""

    color: Color
    dry: bool


TOOLS = [FunctionTool.from_defaults(paint), FunctionTool.from_defaults(wash)]
PROMPT = PromptTemplate("Describe a {thing}.")


@pytest.fixture
def llm(pack) -> PackFuse:
    """The LLM, with room for a call."""
    return PackFuse(pack=pack, max_new_tokens=64)


def calls(response) -> list[ToolCallBlock]:
    """The calls of an answer."""
    return [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]


async def drain(stream) -> list:
    return [item async for item in await stream]


def all_ways(llm: PackFuse, tools=TOOLS, **arguments) -> list:
    """One answer with tools in all four ways."""
    arguments = {"user_msg": "Do something.", **arguments}
    return [
        llm.chat_with_tools(tools, **arguments),
        list(llm.stream_chat_with_tools(tools, **arguments))[-1],
        asyncio.run(llm.achat_with_tools(tools, **arguments)),
        asyncio.run(drain(llm.astream_chat_with_tools(tools, **arguments)))[-1],
    ]


def test_a_required_call_is_made_in_every_way(llm):
    for response in all_ways(llm, tool_required=True):
        [call] = calls(response)
        [selected] = llm.get_tool_calls_from_response(response)
        assert selected.tool_name == call.tool_name
        assert selected.tool_kwargs == call.tool_kwargs
        assert selected.tool_id == call.tool_call_id
        tool = {"paint": paint, "wash": wash}[selected.tool_name]
        assert tool(**selected.tool_kwargs)
        assert response.message.content is None
        assert response.additional_kwargs["finish_reason"] == "tool_calls"
        assert response.raw["fusion"]["weights"]


def test_all_ways_make_the_same_call(llm):
    made = [calls(response)[0] for response in all_ways(llm, tool_required=True)]
    assert len({(call.tool_name, json.dumps(call.tool_kwargs)) for call in made}) == 1
    assert len({call.tool_call_id for call in made}) == 4


@pytest.mark.parametrize(
    "choice", ["wash", {"type": "function", "function": {"name": "wash"}}], ids=["name", "openai"]
)
def test_a_tool_can_be_named(llm, choice):
    for response in all_ways(llm, tool_choice=choice):
        [call] = calls(response)
        assert call.tool_name == "wash"
        assert call.tool_kwargs["times"] in (1, 2, 3)


def test_without_a_choice_the_answer_is_free(llm):
    for response in all_ways(llm, tool_choice="none"):
        assert calls(response) == []
        assert response.message.content
    for response in all_ways(llm):
        assert calls(response) == []  # random models do not write the tag by chance
        assert response.message.content
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


def test_only_known_tools_can_be_named(llm):
    with pytest.raises(ConfigError, match=r"no tool is called 'fly'.*paint, wash"):
        llm.chat_with_tools(TOOLS, user_msg="Go.", tool_choice="fly")
    with pytest.raises(ConfigError, match="no tools"):
        llm.chat_with_tools([], user_msg="Go.", tool_required=True)


def test_what_is_prepared(llm):
    history = [ChatMessage("Be brief.", role="system"), ChatMessage("Hello!")]
    before = copy.deepcopy(history)
    ready = llm._prepare_chat_with_tools(
        TOOLS, user_msg="Go.", chat_history=history, allow_parallel_tool_calls=True, seed=1
    )
    assert ready["messages"] == [*before, ChatMessage("Go.")]
    assert ready["messages"] is not history
    assert history == before
    assert [tool["function"]["name"] for tool in ready["tools"]] == ["paint", "wash"]
    assert (ready["tool_choice"], ready["parallel_tool_calls"], ready["seed"]) == (None, True, 1)
    ready = llm._prepare_chat_with_tools(TOOLS, tool_required=True)
    assert (ready["tool_choice"], ready["parallel_tool_calls"]) == ("required", False)
    ready = llm._prepare_chat_with_tools(TOOLS, tool_required=True, tool_choice="wash")
    assert ready["tool_choice"] == "wash"
    message = ChatMessage("Go.", role="user")
    assert llm._prepare_chat_with_tools(TOOLS, user_msg=message)["messages"] == [message]


def test_the_callers_history_is_not_changed(llm):
    history = [ChatMessage("Be brief.", role="system"), ChatMessage("Hello!")]
    before = copy.deepcopy(history)
    all_ways(llm, chat_history=history, tool_required=True, max_tokens=40)
    assert history == before


def test_tools_can_be_given_to_chat_itself(llm):
    response = llm.chat([ChatMessage("Go.")], tools=TOOLS, tool_choice="any")
    assert len(calls(response)) == 1


@pytest.mark.slow
def test_parallel_calls(llm):
    bounded = {"tool_required": True, "max_tokens": 160, "temperature": 1.0}
    several = [
        calls(llm.chat_with_tools(TOOLS, "Go.", allow_parallel_tool_calls=True, seed=s, **bounded))
        for s in range(6)
    ]
    assert max(map(len, several)) > 1
    for made in several:
        assert len({call.tool_call_id for call in made}) == len(made)
    for seed in range(6):
        response = llm.chat_with_tools(TOOLS, "Go.", seed=seed, **bounded)
        assert len(calls(response)) == 1


@pytest.mark.slow
def test_a_call_that_was_cut_off_is_not_a_call(llm):
    whole = llm.chat_with_tools(TOOLS, "Go.", tool_required=True)
    used = whole.raw["usage"]["completion_tokens"]
    for length in (used - 6, used - 2):
        for response in all_ways(llm, user_msg="Go.", tool_required=True, max_tokens=length):
            assert calls(response) == []
            assert "tool_calls" not in response.message.additional_kwargs
            [broken] = response.message.additional_kwargs["invalid_tool_calls"]
            assert broken["name"] == calls(whole)[0].tool_name
            assert "max_new_tokens" in broken["error"]
            assert response.additional_kwargs["finish_reason"] == "length"
            assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
            with pytest.raises(ValueError, match="cut off by max_new_tokens"):
                llm.get_tool_calls_from_response(response)


def test_an_answer_without_a_call_is_an_error(llm):
    response = llm.chat([ChatMessage("Hello!")], max_tokens=4)
    with pytest.raises(ValueError, match="tool_required=True"):
        llm.get_tool_calls_from_response(response)


def test_streams_show_calls_when_they_are_complete(llm):
    items = list(llm.stream_chat_with_tools(TOOLS, "Go.", tool_required=True))
    counts = [len(calls(item)) for item in items]
    assert counts == sorted(counts)
    assert counts[-1] == 1
    assert all(item.message.content in (None, "") for item in items)
    shown = [calls(item)[0] for item in items if calls(item)]
    assert all(call == shown[0] for call in shown)


def test_results_go_back_to_the_model(llm):
    first = llm.chat_with_tools(TOOLS, "Go.", tool_required=True)
    [call] = calls(first)
    history = [
        ChatMessage("Go."),
        first.message,
        ChatMessage("done", role="tool", additional_kwargs={"tool_call_id": call.tool_call_id}),
    ]
    second = llm.chat_with_tools(TOOLS, chat_history=history, max_tokens=4)
    third = llm.chat_with_tools(TOOLS, chat_history=history[:1], max_tokens=4)
    assert second.raw["usage"]["prompt_tokens"] > third.raw["usage"]["prompt_tokens"]


def test_predict_and_call(llm):
    response = llm.predict_and_call(TOOLS, "Go.", tool_required=True)
    [output] = response.sources
    assert output.tool_name in ("paint", "wash")
    assert not output.is_error
    response = asyncio.run(llm.apredict_and_call(TOOLS, "Go.", tool_choice="paint"))
    assert response.response.split()[0] in ("red", "green", "blue")


def test_structured_predict(llm):
    assert isinstance(llm.structured_predict(Wall, PROMPT, thing="wall"), Wall)
    assert isinstance(asyncio.run(llm.astructured_predict(Wall, PROMPT, thing="wall")), Wall)


def test_structured_predict_honors_arguments(llm):
    with collect_fusion() as fusion:
        llm.structured_predict(Wall, PROMPT, {"seed": 5, "temperature": 1.0}, thing="wall")
    assert [record["seed"] for record in fusion.records] == [5]
    with pytest.raises(ValueError, match="cut off by max_new_tokens"):
        llm.structured_predict(Wall, PROMPT, {"max_tokens": 5}, thing="wall")


def test_streamed_structured_predict_is_forced_too(llm):
    parts = list(llm.stream_structured_predict(Wall, PROMPT, thing="wall"))
    assert isinstance(parts[-1], Wall)

    async def stream():
        stream = await llm.astream_structured_predict(Wall, PROMPT, thing="wall")
        return [part async for part in stream]

    assert asyncio.run(stream())[-1] == parts[-1]


# LlamaIndex itself calls a method of pydantic that is deprecated.
@pytest.mark.filterwarnings("ignore:The `json` method is deprecated")
def test_structured_llm(llm):
    structured = llm.as_structured_llm(Wall)
    response = structured.chat([ChatMessage("Describe a wall.")])
    assert isinstance(response.raw, Wall)
    assert Wall.model_validate_json(response.message.content) == response.raw
    assert isinstance(asyncio.run(structured.acomplete("Describe a wall.")).raw, Wall)
    last = list(structured.stream_chat([ChatMessage("Describe a wall.")]))[-1]
    assert Wall.model_validate_json(last.message.content) == response.raw


def test_without_the_flag_structured_output_is_parsed_from_text(pack):
    llm = PackFuse(pack=pack, is_function_calling_model=False, max_new_tokens=32)
    found = llm.structured_predict(
        Wall, PROMPT, {"constraint": Wall.model_json_schema()}, thing="wall"
    )
    assert isinstance(found, Wall)
    with pytest.raises(ValueError, match=r"JSON|json"):
        llm.structured_predict(Wall, PROMPT, {"max_tokens": 4}, thing="wall")
