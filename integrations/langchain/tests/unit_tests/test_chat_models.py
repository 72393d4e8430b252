"""The use of the chat model in LangChain, on tiny random models."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langchain_packfuse import ChatPackFuse, PackFuseLLM, get_fusion_callback
from pydantic import BaseModel

from packfuse import Pack
from packfuse.errors import ConfigError, ConstraintError, PromptError
from tests.support import packs, pico

QUESTION = "What is the capital of France?"


@pytest.fixture
def model(tiny: Pack) -> ChatPackFuse:
    """Short answers."""
    return ChatPackFuse(pack=tiny, max_tokens=10)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "timings"}


def merged(chunks: Any) -> AIMessageChunk:
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    assert isinstance(whole, AIMessageChunk)
    return whole


def facts(message: BaseMessage) -> dict[str, Any]:
    """Everything about an answer that must not depend on the way of calling."""
    assert isinstance(message, AIMessage)
    return {
        "content": message.content,
        "usage": message.usage_metadata,
        "invalid": [(c["name"], c["args"]) for c in message.invalid_tool_calls],
        "calls": [(c["name"], c["args"]) for c in message.tool_calls],
        "metadata": {k: v for k, v in message.response_metadata.items() if k != "fusion"},
        "fusion": without_times(message.response_metadata["fusion"]),
    }


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def test_invoke_stream_and_batch_give_the_same_answer(model: ChatPackFuse) -> None:
    invoked = model.invoke(QUESTION)
    assert facts(merged(model.stream(QUESTION))) == facts(invoked)
    others = model.batch([QUESTION, "Hello"])
    assert facts(others[0]) == facts(invoked)
    fusion = invoked.response_metadata["fusion"]
    assert sum(fusion["weights"].values()) == pytest.approx(1)
    assert fusion["members"] == ["deepseek", "mistral"]


async def test_async_methods_give_the_same_answer(model: ChatPackFuse) -> None:
    expected = facts(model.invoke(QUESTION))
    assert facts(await model.ainvoke(QUESTION)) == expected
    assert facts((await model.abatch([QUESTION, "Hello"]))[0]) == expected
    assert facts(merged([chunk async for chunk in model.astream(QUESTION)])) == expected


def test_the_answer_is_the_packs_own(model: ChatPackFuse, tiny: Pack) -> None:
    answer = tiny.generate([{"role": "user", "content": QUESTION}], max_new_tokens=10)
    assert model.invoke(QUESTION).content == answer.text
    assert model.invoke(QUESTION).usage_metadata == {
        "input_tokens": answer.record.usage.prompt_tokens,
        "output_tokens": answer.record.usage.completion_tokens,
        "total_tokens": answer.record.usage.total_tokens,
        "input_token_details": {"cache_read": 0},
    }


def test_cached_tokens_are_in_the_usage(tiny: Pack) -> None:
    model = ChatPackFuse(pack=packs.tiny_pack(tiny.members), max_tokens=3)
    model.invoke(QUESTION)
    usage = model.invoke(QUESTION + " And why?").usage_metadata
    assert usage is not None
    assert 0 < usage["input_token_details"]["cache_read"] < usage["input_tokens"]


def test_usage_and_metadata_come_once_in_a_stream(model: ChatPackFuse) -> None:
    chunks = [chunk for chunk in model.stream(QUESTION) if isinstance(chunk, AIMessageChunk)]
    assert sum(bool(chunk.usage_metadata) for chunk in chunks) == 1
    assert sum("fusion" in chunk.response_metadata for chunk in chunks) == 1
    assert merged(chunks).response_metadata["model_name"] == "deepseek+mistral"
    assert merged(chunks).response_metadata["finish_reason"] in ("stop", "length")


def test_a_call_overrides_the_constructor(model: ChatPackFuse) -> None:
    usage = model.invoke(QUESTION, max_tokens=3).usage_metadata
    assert usage is not None
    assert usage["output_tokens"] <= 3
    record = model.invoke(
        QUESTION, weights={"deepseek": 0.25, "mistral": 0.75}, fusion="unite", trace=True
    ).response_metadata["fusion"]
    assert record["weights"] == {"deepseek": 0.25, "mistral": 0.75}
    assert record["fusion"]["name"] == "unite"
    assert len(record["trace"]) == record["usage"]["completion_tokens"]
    bound = model.bind(weighting="uniform").invoke(QUESTION).response_metadata["fusion"]
    assert bound["weights"] == {"deepseek": 0.5, "mistral": 0.5}
    sampled = [model.invoke(QUESTION, temperature=2.0, seed=seed).content for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_arguments_of_a_call_replace_settings_of_another_name(tiny: Pack) -> None:
    settings: Any = {"max_tokens": 8, "weights": {"deepseek": 0.25, "mistral": 0.75}}
    chat, llm = ChatPackFuse(pack=tiny, **settings), PackFuseLLM(pack=tiny, **settings)
    call: Any = {"max_new_tokens": 3, "weighting": "uniform"}
    [[generation]] = llm.generate([QUESTION], **call).generations
    assert generation.generation_info is not None
    answer = chat.invoke(QUESTION, **call)
    for found in (answer.response_metadata["fusion"], generation.generation_info["fusion"]):
        assert found["weights"] == {"deepseek": 0.5, "mistral": 0.5}
        assert found["usage"]["completion_tokens"] <= 3


def test_zero_is_a_setting(tiny: Pack) -> None:
    sampled = ChatPackFuse(pack=tiny, max_tokens=10, temperature=2.0, seed=0)
    assert sampled.invoke(QUESTION).response_metadata["fusion"]["seed"] == 0
    assert sampled.invoke(QUESTION).content == sampled.invoke(QUESTION).content
    greedy = ChatPackFuse(pack=tiny, max_tokens=10, temperature=0, top_p=0.9)
    plain = ChatPackFuse(pack=tiny, max_tokens=10).invoke(QUESTION)
    assert {str(greedy.invoke(QUESTION).content) for _ in range(3)} == {plain.content}
    assert greedy._get_ls_params()["ls_temperature"] == 0


def test_settings_can_be_made_configurable(model: ChatPackFuse) -> None:
    flexible = model.configurable_fields(weighting=ConfigurableField(id="weighting"))
    configured = flexible.with_config(configurable={"weighting": "uniform"})
    assert configured.invoke(QUESTION).response_metadata["fusion"]["weights"]["mistral"] == 0.5


def test_stop_strings_end_an_answer_inside_tokens(model: ChatPackFuse) -> None:
    whole = str(model.invoke(QUESTION).content)
    stop = whole[4:6]
    expected = whole[: whole.index(stop)]
    assert model.invoke(QUESTION, stop=[stop]).content == expected
    assert merged(model.stream(QUESTION, stop=[stop])).content == expected
    assert model.bind(stop=[stop]).invoke(QUESTION).response_metadata["finish_reason"] == "stop"


def test_two_packs_do_not_share_a_cached_answer(tiny: Pack) -> None:
    cache = InMemoryCache()
    one = ChatPackFuse(pack=tiny, max_tokens=6, cache=cache)
    other = ChatPackFuse(
        pack=tiny, max_tokens=6, cache=cache, weights={"deepseek": 1, "mistral": 0}
    )
    first = one.invoke(QUESTION)
    assert one.invoke(QUESTION).response_metadata == first.response_metadata  # timings included
    answer = other.invoke(QUESTION)
    assert answer.response_metadata["fusion"]["weights"] == {"deepseek": 1, "mistral": 0}
    changed = one.invoke(QUESTION, fusion="mixture")
    assert changed.response_metadata["fusion"]["fusion"]["name"] == "mixture"
    assert one._identifying_params != other._identifying_params


def test_chains(model: ChatPackFuse) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be short."), ("user", "{q}")]) | model
    text = (chain | StrOutputParser()).invoke({"q": QUESTION})
    assert text == chain.invoke({"q": QUESTION}).content
    assert "".join((chain | StrOutputParser()).stream({"q": QUESTION})) == text


def test_records_of_a_chain_are_collected(model: ChatPackFuse) -> None:
    chain = model | StrOutputParser() | model
    with get_fusion_callback() as fusion:
        chain.invoke(QUESTION)
        assert len(fusion.records) == 2
        list(model.stream(QUESTION))
    model.invoke(QUESTION)
    assert len(fusion.records) == 3
    assert all(record["members"] == ["deepseek", "mistral"] for record in fusion.records)


def test_messages_are_trimmed_by_the_tokens_of_the_reference(model: ChatPackFuse) -> None:
    chat = [SystemMessage("Be short."), *[HumanMessage(f"Message {i}") for i in range(20)]]
    room = model.get_num_tokens_from_messages([chat[0], *chat[-5:]])
    kept = trim_messages(
        chat, max_tokens=room, token_counter=model, include_system=True, start_on="human"
    )
    assert kept[0] == chat[0]
    assert kept[1:] == chat[1 - len(kept) :]
    assert 3 < len(kept) < len(chat)
    assert model.get_num_tokens_from_messages(kept) <= room
    assert model.get_num_tokens_from_messages(chat, tools=[multiply]) > (
        model.get_num_tokens_from_messages(chat)
    )
    assert model.get_num_tokens("Hello there") == len(model.get_token_ids("Hello there"))


def test_messages_that_are_trimmed_to_the_profile_are_answered() -> None:
    members = [
        packs.HFMember(name, pico.tiny_pair(name, context=size)[0], packs.vocabulary(name))
        for name, size in (("deepseek", 300), ("mistral", 400))
    ]
    model = ChatPackFuse(pack=packs.tiny_pack(members, prefix_cache=0), max_tokens=1000)
    assert model.profile is not None
    chat = [SystemMessage("Kurz."), *[HumanMessage(f"Grüße aus 北京 {i} 🎉") for i in range(60)]]
    kept = trim_messages(
        chat,
        max_tokens=model.profile["max_input_tokens"],
        token_counter=model,
        include_system=True,
        start_on="human",
    )
    assert 3 < len(kept) < len(chat)
    answer = model.invoke(kept)
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "length"
    with pytest.raises(PromptError, match="which can read"):
        model.invoke(chat)


@pytest.mark.parametrize("choice", ["any", "multiply", True])
def test_a_forced_call_is_always_valid(model: ChatPackFuse, choice: Any) -> None:
    """With random models, a call is valid, or it is reported as cut off."""
    bound = model.bind_tools([multiply, weather], tool_choice=choice, max_tokens=40)
    answer = bound.invoke("3 times 4")
    assert facts(merged(bound.stream("3 times 4"))) == facts(answer)
    assert len(answer.tool_calls) + len(answer.invalid_tool_calls) == 1
    for call in answer.tool_calls:
        {"multiply": multiply, "weather": weather}[call["name"]].invoke(call["args"])
    if choice == "multiply":
        assert [c["name"] for c in answer.tool_calls + answer.invalid_tool_calls] == ["multiply"]


def test_a_call_that_is_cut_off_is_invalid(model: ChatPackFuse) -> None:
    bound = model.bind_tools([weather], tool_choice="any", max_tokens=20)
    answer = bound.invoke("3 times 4")
    assert answer.response_metadata["finish_reason"] == "length"
    for found in (answer, merged(bound.stream("3 times 4"))):
        assert found.tool_calls == []
        assert [call["name"] for call in found.invalid_tool_calls] == ["weather"]


def test_structured_output_that_is_cut_off_is_an_error(model: ChatPackFuse) -> None:
    class Fact(BaseModel):
        """A fact."""

        subject: str

    structured = model.with_structured_output(Fact, include_raw=True)
    found = structured.invoke("A fact")
    assert found["parsed"] is None
    assert "raise max_tokens" in str(found["parsing_error"])
    assert found["raw"].response_metadata["finish_reason"] == "length"


def test_a_history_with_tools(model: ChatPackFuse) -> None:
    call = {"name": "multiply", "args": {"a": 3, "b": 4}, "id": "1"}
    history: list[BaseMessage] = [
        HumanMessage("3 times 4?"),
        AIMessage("", tool_calls=[call]),
        ToolMessage("12", tool_call_id="1"),
    ]
    answer = model.bind_tools([multiply]).invoke(history)
    assert answer.usage_metadata is not None
    plain = model.bind_tools([multiply]).invoke(history[:1])
    assert plain.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"] + 10


async def test_events_carry_the_record(model: ChatPackFuse) -> None:
    kinds, ends = [], []
    async for event in model.astream_events(QUESTION, version="v2"):
        kinds.append(event["event"])
        if event["event"] == "on_chat_model_end":
            ends.append(event["data"]["output"])
    assert kinds[0] == "on_chat_model_start"
    assert "on_chat_model_stream" in kinds
    assert facts(ends[0]) == facts(model.invoke(QUESTION))


def test_a_pack_is_given_in_one_way(tiny: Pack) -> None:
    with pytest.raises(ConfigError, match="pack and models"):
        ChatPackFuse(pack=tiny, models=["a", "b"])
    with pytest.raises(ConfigError, match="none"):
        ChatPackFuse()
    with pytest.raises(ConfigError, match="takes no dtype"):
        ChatPackFuse(pack=tiny, load_kwargs={"dtype": "float32"})


def test_errors_name_the_bad_input(model: ChatPackFuse) -> None:
    with pytest.raises(ConfigError, match=r"'divide'.*multiply"):
        model.bind_tools([multiply], tool_choice="divide")
    impossible = {
        "name": "odd", "description": "", "parameters":
        {"type": "object", "properties": {"x": {"type": "string", "enum": []}}, "required": ["x"]},
    }  # fmt: skip
    with pytest.raises(ConstraintError, match=r"'odd'.*/properties/x"):
        model.bind_tools([impossible], tool_choice="odd").invoke(QUESTION)
    assert model.bind_tools([impossible, multiply], tool_choice="multiply").invoke(QUESTION)
    with pytest.raises(ConfigError, match="''"):
        model.invoke(QUESTION, stop=[""])
    with pytest.raises(PromptError, match="text only"):
        model.invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(PromptError, match="empty"):
        model.invoke([HumanMessage("")])
    with pytest.raises(PromptError, match="empty"):
        model.invoke([])
    with pytest.raises(PromptError, match=r"tokens long for member.*512"):
        model.invoke("long " * 600)
    with pytest.raises(ConfigError, match="cannot change the models"):
        model.invoke(QUESTION, model="other")
    assert model.invoke(QUESTION).content  # and nothing is broken by it


def test_repeated_roles_and_empty_messages(model: ChatPackFuse) -> None:
    chat = [SystemMessage("A"), SystemMessage("B"), HumanMessage("C"), HumanMessage("D")]
    assert model.invoke(chat).content
    assert model.invoke([HumanMessage("C"), AIMessage(""), HumanMessage("D")]).content


def test_the_profile_is_the_packs(model: ChatPackFuse, tiny: Pack) -> None:
    assert model.profile is not None
    assert model.profile["max_input_tokens"] == tiny.context_window == 512
    assert model.profile["tool_calling"]
    params = model._get_ls_params(stop=["x"], temperature=0.5)
    assert params == {
        "ls_provider": "packfuse", "ls_model_name": "deepseek+mistral", "ls_model_type": "chat",
        "ls_temperature": 0.5, "ls_max_tokens": 10, "ls_stop": ["x"],
    }  # fmt: skip
