"""Real clients against a served pack: each gets what the pack answers by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, SecretStr

from packfuse import Pack
from packfuse.tools import Completion, Turn
from tests.support.scripted import TEMPLATE
from tests.support.serving import served_pack
from tests.support.small import small_pack

MESSAGES: list[Any] = [{"role": "user", "content": "Hello the true"}]
PROMPT = "Hello the true"
NEW = 8
NUDGE = {"name": "nudge", "threshold": 0.4, "leader": "long"}
SHORT: dict[str, Any] = {"max_tokens": NEW}


class City(BaseModel):
    """A city."""

    name: str
    people: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return city


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]},
    },
}


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, context=2048)


@pytest.fixture(scope="module")
def url(pack: Pack) -> Iterator[str]:
    with served_pack(pack) as found:
        yield found


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat(pack: Pack, client: openai.OpenAI) -> None:
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW).answer()
    found = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=NEW)
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason
    assert found.usage is not None
    assert found.usage.completion_tokens == expected.usage["completion_tokens"]
    assert found.usage.prompt_tokens_details is not None
    record = expected.record.model_dump(
        mode="json", exclude={"timings", "usage", "trace", "prompt_trace"}
    )
    for place in (found.model_extra, found.usage.model_extra):
        assert place is not None
        assert place["fusion"].items() >= record.items()
    assert (found.system_fingerprint or "").startswith("pf_")


@pytest.mark.parametrize(
    ("asked", "own"),
    [
        ({"temperature": 0}, {}),
        ({"temperature": 1.5, "seed": 4}, {"temperature": 1.5, "seed": 4, "top_k": 0}),
        ({"top_p": 0.5, "seed": 1}, {"top_p": 0.5, "seed": 1, "top_k": 0}),
        ({"stop": ["e", "a"]}, {"stop": ["e", "a"]}),
        ({"extra_body": {"fusion": "unite"}}, {"fusion": "unite"}),
        ({"extra_body": {"weights": {"short": 1.0}}}, {"weights": {"short": 1.0}}),
        ({"extra_body": {"gate": "safe", "draft": "lookup"}}, {"gate": "safe", "draft": "lookup"}),
        ({"extra_body": {"gate": NUDGE}}, {"gate": NUDGE}),
        ({"logit_bias": {"101": -100}}, {"sequence_bias": {(101,): -100.0}}),
        ({"frequency_penalty": 0, "presence_penalty": 0.0, "user": "me", "store": False}, {}),
    ],
    ids=lambda given: "-".join(map(str, given)) or "none",
)
def test_settings_of_a_request(
    pack: Pack, client: openai.OpenAI, asked: dict[str, Any], own: dict[str, Any]
) -> None:
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW, **own).answer()
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=NEW, **asked
    )
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason


def test_a_streamed_chat(pack: Pack, client: openai.OpenAI) -> None:
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW).answer()
    stream = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=NEW,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected.text
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [
        *[None] * (len(chunks) - 2),
        expected.finish_reason,
    ]
    *_, last, usage = chunks
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == expected.usage["completion_tokens"]
    for chunk in (last, usage):
        assert (chunk.model_extra or {})["fusion"]["weights"] == expected.record.weights


def test_log_probabilities(pack: Pack, client: openai.OpenAI) -> None:
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW, top_logprobs=3, trace=True).answer()
    asked: dict[str, Any] = {
        "model": "tiny", "messages": MESSAGES, "max_tokens": NEW, "logprobs": True,
        "top_logprobs": 3,
    }  # fmt: skip
    found = client.chat.completions.create(**asked).choices[0].logprobs
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert found is not None
    steps = expected.record.trace or []
    for tokens in (found.content or [], streamed):
        assert [token.token for token in tokens] == [step.text for step in steps]
        assert [token.logprob for token in tokens] == pytest.approx([s.logprob for s in steps])
        assert {len(token.top_logprobs) for token in tokens} == {3}


def test_several_answers(pack: Pack, client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=NEW, n=3, temperature=2, seed=1
    )
    turn = Turn(
        pack, MESSAGES, max_new_tokens=NEW, num_return_sequences=3, temperature=2, seed=1, top_k=0
    )
    assert [c.message.content for c in found.choices] == [reply.text for reply in turn.answers()]
    assert [c.index for c in found.choices] == [0, 1, 2]
    assert found.usage is not None
    assert found.usage.completion_tokens == 3 * NEW


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_tool_call(pack: Pack, client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "messages": MESSAGES, "max_tokens": 200, "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }  # fmt: skip
    expected = Turn(
        pack, MESSAGES, max_new_tokens=200, tools=[WEATHER], tool_choice=asked["tool_choice"]
    ).answer()
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        calls: list[Any] = [c for k in chunks for c in k.choices[0].delta.tool_calls or ()]
        assert [call.index for call in calls] == [0]
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        calls, reason = list(choice.message.tool_calls or ()), choice.finish_reason
    assert [call.function.name for call in calls] == ["weather"]
    assert json.loads(calls[0].function.arguments) == expected.calls[0].arguments
    assert reason == "tool_calls"


def test_a_structured_answer(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        right: bool

    found = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, max_tokens=60, response_format=Answer
    )
    assert isinstance(found.choices[0].message.parsed, Answer)
    plain = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, response_format={"type": "json_object"}
    )
    assert (plain.choices[0].message.content or "").lstrip().startswith("{")


def test_texts(pack: Pack, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "the lo"]
    expected = [Completion(pack, prompt, max_new_tokens=NEW).answer() for prompt in prompts]
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=NEW)
    assert [choice.text for choice in found.choices] == [reply.text for reply in expected]
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(r.usage["prompt_tokens"] for r in expected)
    ids = pack.members[0].vocabulary.encode(PROMPT)
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=NEW, logprobs=2)
    assert by_ids.choices[0].text == expected[0].text
    logprobs = by_ids.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ())
    assert [len(top) for top in logprobs.top_logprobs or ()] == [2] * NEW
    stream = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected[0].text
    assert chunks[-1].choices[0].finish_reason == expected[0].finish_reason


def test_the_models(pack: Pack, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert (model.model_extra or {})["members"] == pack.names


def test_streams_of_several_answers(pack: Pack, client: openai.OpenAI) -> None:
    several: dict[str, Any] = {"temperature": 1.0, "seed": 5, "n": 3, "max_tokens": NEW}
    asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, **several}
    whole = client.chat.completions.create(**asked)
    usage: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**asked, **usage)
    assert _texts(chunks) == [choice.message.content for choice in whole.choices]
    assert len(set(_texts(chunks))) > 1
    assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    prompts: Any = [PROMPT, "the lo"]
    texts = client.completions.create(model="tiny", prompt=prompts, **several)
    *parts, last = client.completions.create(model="tiny", prompt=prompts, **several, **usage)
    assert _texts(parts) == [choice.text for choice in texts.choices]
    assert last.usage.total_tokens == texts.usage.total_tokens


def _texts(chunks: list[Any]) -> list[str]:
    """The texts of all answers of a stream, by index."""
    found: dict[int, str] = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        text = choice.text if hasattr(choice, "text") else choice.delta.content or ""
        found[choice.index] = found.get(choice.index, "") + text
    return [found[index] for index in sorted(found)]


async def _whole_text(client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    found = await client.completions.create(model="tiny", prompt=prompt, **{**SHORT, **more})
    return found.choices[0].text


async def _streamed_text(client: openai.AsyncOpenAI, prompt: str) -> Any:
    stream = await client.completions.create(model="tiny", prompt=prompt, stream=True, **SHORT)
    return "".join([chunk.choices[0].text async for chunk in stream])


async def _sampled(client: openai.AsyncOpenAI, prompt: str) -> Any:
    return await _whole_text(client, prompt, temperature=1.2, seed=len(prompt))


async def _chat(client: openai.AsyncOpenAI, prompt: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    found = await client.chat.completions.create(
        model="tiny", messages=messages, **{**SHORT, **more}
    )
    message = found.choices[0].message
    return message.content, [call.function.model_dump() for call in message.tool_calls or ()]


async def _called(client: openai.AsyncOpenAI, prompt: str) -> Any:
    return await _chat(client, prompt, tools=[WEATHER], tool_choice="required", max_tokens=60)


async def _json(client: openai.AsyncOpenAI, prompt: str) -> Any:
    schema = {"name": "kind", "schema": {"enum": ["first", "second", prompt]}}
    wanted = {"type": "json_schema", "json_schema": schema}
    return await _chat(client, prompt, response_format=wanted, max_tokens=60)


async def _left_early(client: openai.AsyncOpenAI, prompt: str) -> Any:
    """The beginning of a long answer that the client does not read to its end."""
    stream = await client.completions.create(
        model="tiny", prompt=prompt, max_tokens=300, stream=True
    )
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].text
        if len(text) >= 4:
            break
    await stream.close()
    return text[:4]


async def _failed(client: openai.AsyncOpenAI, prompt: str) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        await _chat(client, prompt * 400)
    return str(caught.value)


MIXED = (_whole_text, _streamed_text, _sampled, _chat, _called, _json, _left_early, _failed)


def test_64_mixed_requests_at_once(url: str) -> None:
    """Each has the answer, or the error, that it has alone."""
    prompts = [f"number {index}" for index in range(64)]

    async def ask(*, together: bool) -> list[Any]:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client:
            calls = [MIXED[i % len(MIXED)](client, prompt) for i, prompt in enumerate(prompts)]
            if together:
                return await asyncio.gather(*calls)
            return [await call for call in calls]

    assert asyncio.run(ask(together=True)) == asyncio.run(ask(together=False))


def test_langchain(pack: Pack, url: str) -> None:
    keys: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": SecretStr("none"), "model": "tiny"}
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW).answer()
    chat = ChatOpenAI(**keys, max_completion_tokens=NEW, temperature=0)
    found = chat.invoke([HumanMessage(PROMPT)])
    assert found.content == expected.text
    weights = found.response_metadata["token_usage"]["fusion"]["weights"]
    assert weights == expected.record.weights
    assert "".join(str(chunk.content) for chunk in chat.stream(PROMPT)) == expected.text
    called = chat.bind_tools([weather], tool_choice="weather").bind(max_completion_tokens=300)
    assert [call["name"] for call in called.invoke(PROMPT).tool_calls] in ([], ["weather"])
    text = OpenAI(**keys, max_tokens=NEW, temperature=0)
    assert text.invoke(PROMPT) == Completion(pack, PROMPT, max_new_tokens=NEW).answer().text


def test_llama_index(pack: Pack, url: str) -> None:
    llm = OpenAILike(
        model="tiny", api_base=f"{url}/v1", api_key="none", is_chat_model=True, max_tokens=NEW,
        temperature=0.0,
    )  # fmt: skip
    expected = Turn(pack, MESSAGES, max_new_tokens=NEW).answer()
    found = llm.chat([ChatMessage(role="user", content=PROMPT)])
    assert found.message.content == expected.text
    assert found.raw.model_extra["fusion"]["weights"] == expected.record.weights
    deltas = [chunk.delta or "" for chunk in llm.stream_chat([ChatMessage(content=PROMPT)])]
    assert "".join(deltas) == expected.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(pack: Pack, url: str) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": NEW, "stream": True})
    command = ["curl", "-sN", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", body], capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == Turn(pack, MESSAGES, max_new_tokens=NEW).answer().text
