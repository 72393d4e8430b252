"""Answers equal the pack's own, whole or streamed, with every argument of a call."""

from __future__ import annotations

import asyncio
import json
import math

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse.errors import ConfigError, PromptError, WeightsError

PROMPT = "Once upon a time"
CHAT = [ChatMessage("Be brief.", role="system"), ChatMessage("Who is there?")]
PLAIN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]


def comparable(record: dict) -> dict:
    """A fusion record without its times."""
    return {name: value for name, value in record.items() if name != "timings"}


async def drain(stream) -> list:
    return [item async for item in await stream]


def all_completions(llm: PackFuse, prompt: str, **arguments) -> list:
    """One completion in all four ways."""
    return [
        llm.complete(prompt, **arguments),
        list(llm.stream_complete(prompt, **arguments))[-1],
        asyncio.run(llm.acomplete(prompt, **arguments)),
        asyncio.run(drain(llm.astream_complete(prompt, **arguments)))[-1],
    ]


def all_chats(llm: PackFuse, messages, **arguments) -> list:
    """One answer in all four ways."""
    return [
        llm.chat(messages, **arguments),
        list(llm.stream_chat(messages, **arguments))[-1],
        asyncio.run(llm.achat(messages, **arguments)),
        asyncio.run(drain(llm.astream_chat(messages, **arguments)))[-1],
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"temperature": 0.9, "seed": 7},
        {"fusion": "unite", "weighting": "sim"},
        {"weights": {"deepseek": 0.2, "mistral": 0.8}},
    ],
    ids=["plain", "seed", "fusion", "weights"],
)
def test_the_same_answer_as_the_packs_own_in_every_way(llm, pack, arguments):
    own = pack.generate(PROMPT, max_new_tokens=8, **arguments)
    for response in all_completions(llm, PROMPT, **arguments):
        assert response.text == own.text
        assert comparable(response.raw["fusion"]) == comparable(own.record.model_dump(mode="json"))
    own = pack.generate(PLAIN, max_new_tokens=8, **arguments)
    for response in all_chats(llm, CHAT, **arguments):
        assert response.message.content == own.text
        assert response.message.role == "assistant"
        assert comparable(response.raw["fusion"]) == comparable(own.record.model_dump(mode="json"))


def test_streams_have_the_text_so_far_and_its_last_part(llm):
    for items, text in (
        (list(llm.stream_complete(PROMPT)), lambda item: item.text),
        (list(llm.stream_chat(CHAT)), lambda item: item.message.content),
    ):
        assert len(items) > 2
        seen = ""
        for item in items:
            seen += item.delta
            assert text(item) == seen
        assert [item.raw for item in items[:-1]] == [None] * (len(items) - 1)
        assert items[-1].raw["usage"]["completion_tokens"] == 8


def test_raw_is_plain_json_with_usage_and_record(llm):
    for response in [*all_completions(llm, PROMPT), *all_chats(llm, CHAT)]:
        assert json.loads(json.dumps(response.raw)) == response.raw
        assert set(response.raw) == {"usage", "fusion"}
        usage = response.raw["usage"]
        assert usage["completion_tokens"] == 8
        assert usage["total_tokens"] == usage["prompt_tokens"] + 8
        assert response.raw["fusion"]["usage"]["prompt_tokens"] == usage["prompt_tokens"]
        assert response.additional_kwargs["finish_reason"] == "length"
        assert response.additional_kwargs["prompt_tokens"] == usage["prompt_tokens"]


def test_arguments_of_a_call_take_precedence(pack):
    llm = PackFuse(
        pack=pack,
        max_new_tokens=3,
        temperature=0.9,
        weighting="uniform",
        generate_kwargs={"seed": 1, "weights": {"deepseek": 0.9, "mistral": 0.1}},
    )
    record = llm.complete(PROMPT).raw["fusion"]
    assert (record["seed"], record["usage"]["completion_tokens"]) == (1, 3)
    assert record["weights"] == pytest.approx({"deepseek": 0.9, "mistral": 0.1})
    record = llm.complete(PROMPT, seed=2, max_tokens=5, weighting="uniform").raw["fusion"]
    assert (record["seed"], record["usage"]["completion_tokens"]) == (2, 5)
    assert record["weights"] == {"deepseek": 0.5, "mistral": 0.5}
    greedy = pack.generate(PROMPT, max_new_tokens=3, weights={"deepseek": 0.9, "mistral": 0.1})
    assert llm.complete(PROMPT, temperature=0).text == greedy.text
    assert llm.complete(PROMPT, temperature=None, seed=1).text == llm.complete(PROMPT).text


def test_lengths_under_any_name(pack):
    llm = PackFuse(pack=pack, generate_kwargs={"max_tokens": 4})
    assert llm.complete(PROMPT).raw["usage"]["completion_tokens"] == 4
    assert llm.complete(PROMPT, max_new_tokens=2).raw["usage"]["completion_tokens"] == 2
    prompt = llm.complete(PROMPT).raw["usage"]["prompt_tokens"]
    assert llm.complete(PROMPT, max_length=prompt + 6).raw["usage"]["completion_tokens"] == 6
    with pytest.raises(ConfigError, match="same setting"):
        llm.complete(PROMPT, max_tokens=2, max_new_tokens=3)


def test_stop_strings_end_answers_and_are_not_in_the_text(llm):
    text = llm.complete(PROMPT).text
    stop = text[len(text) // 2 :][:3]
    for response in all_completions(llm, PROMPT, stop=[stop]):
        assert response.text == text[: text.index(stop)]
        assert response.additional_kwargs["finish_reason"] == "stop"
        assert response.raw["fusion"]["stop"] == stop
    assert all(stop not in item.text for item in llm.stream_complete(PROMPT, stop=stop))


def test_a_trace_gives_the_probability_of_every_token(llm):
    response = llm.complete(PROMPT, trace=True)
    steps = response.raw["fusion"]["trace"]
    assert len(response.logprobs) == len(steps) == 8
    for [entry], step in zip(response.logprobs, steps, strict=True):
        assert entry.token == step["text"]
        assert math.exp(entry.logprob) == pytest.approx(step["probability"])
    assert llm.complete(PROMPT).logprobs is None
    assert len(llm.chat(CHAT, trace=True).logprobs) == 8


def test_constrained_answers(llm):
    response = llm.complete("Pick one:", constraint={"enum": ["red", "blue"]}, max_tokens=16)
    assert json.loads(response.text) in ("red", "blue")


def test_completion_to_prompt_is_used_unless_formatted(pack):
    llm = PackFuse(pack=pack, max_new_tokens=6, completion_to_prompt="Question: {}\nAnswer:".format)
    own = pack.generate(f"Question: {PROMPT}\nAnswer:", max_new_tokens=6).text
    assert [response.text for response in all_completions(llm, PROMPT)] == [own] * 4
    own = pack.generate(PROMPT, max_new_tokens=6).text
    assert [response.text for response in all_completions(llm, PROMPT, formatted=True)] == [own] * 4


def test_completions_can_be_sent_as_a_chat(pack):
    llm = PackFuse(pack=pack, max_new_tokens=6, chat_completions=True)
    own = pack.generate([{"role": "user", "content": PROMPT}], max_new_tokens=6).text
    assert [response.text for response in all_completions(llm, PROMPT)] == [own] * 4
    own = pack.generate(PROMPT, max_new_tokens=6).text
    assert [response.text for response in all_completions(llm, PROMPT, formatted=True)] == [own] * 4


def test_messages_to_prompt_renders_chats_instead_of_the_templates(pack):
    def render(messages):
        return "".join(f"[{message.role.value}] {message.content}\n" for message in messages)

    llm = PackFuse(pack=pack, max_new_tokens=6, messages_to_prompt=render)
    own = pack.generate("[system] Be brief.\n[user] Who is there?\n", max_new_tokens=6)
    for response in all_chats(llm, CHAT):
        assert response.message.content == own.text
        assert response.raw["usage"]["prompt_tokens"] == own.record.usage.prompt_tokens
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(ConfigError, match="cannot write tools into the prompt"):
        llm.chat(CHAT, tools=[tool])


def test_an_answer_may_have_a_response_format(llm):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    given = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}
    response = llm.chat(CHAT, response_format=given, max_tokens=24)
    assert json.loads(response.message.content) in ({"yes": True}, {"yes": False})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"stop": [""]}, ConfigError, "stop string"),
        ({"fusion": "packlm"}, ConfigError, "did you mean 'packllm'"),
        ({"weights": {"absent": 1.0}}, WeightsError, "absent"),
    ],
)
def test_bad_arguments(llm, arguments, error, words):
    for answer_all in (all_completions, all_chats):
        with pytest.raises(error, match=words):
            answer_all(llm, PROMPT if answer_all is all_completions else CHAT, **arguments)
    with pytest.raises(error, match=words):
        llm.stream_chat(CHAT, **arguments)
    with pytest.raises(error, match=words):
        asyncio.run(drain(llm.astream_chat(CHAT, **arguments)))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        ([ChatMessage("")], "empty"),
        ([ChatMessage("x " * 5000)], "4096|4,096"),
    ],
    ids=["none", "blank", "long"],
)
def test_bad_messages(llm, messages, words):
    with pytest.raises(PromptError, match=words):
        llm.chat(messages)


def test_empty_prompts(llm):
    with pytest.raises(PromptError, match="empty"):
        llm.complete("")
