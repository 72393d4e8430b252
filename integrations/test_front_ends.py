"""All front ends behave alike: equal packs, prompts and seeds give equal texts and records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.errors import ConfigError, PackError, PromptError
from tests.support import packs

PROMPT = "The capital of France is"
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": PROMPT}]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "top_p": 0.9, "seed": 11},
    {"fusion": "unite", "weighting": "uniform"},
    {"weights": {"deepseek": 0.2, "mistral": 0.8}, "trace": True},
    {"stop": ["e", " "]},
    {"repetition_penalty": 1.3},
    {
        "constraint": {
            "type": "object",
            "properties": {"a": {"enum": ["x", "y"]}},
            "required": ["a"],
        }
    },
]
Result = tuple[str, dict[str, Any]]

every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")


@pytest.fixture(scope="module")
def pack() -> Pack:
    return packs.tiny_pack(packs.tiny_members(["deepseek", "mistral"]), prefix_cache=0)


def result(text: Any, record: dict[str, Any]) -> Result:
    return str(text), {key: value for key, value in record.items() if key != "timings"}


def langchain_stream(model: Any, prompt: Any, **settings: Any) -> Result:
    whole = None
    for chunk in model.stream(prompt, **settings):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return result(whole.content, whole.response_metadata["fusion"])


@every_setting
def test_texts(pack: Pack, settings: dict[str, Any]) -> None:
    answer = pack.generate(PROMPT, max_new_tokens=12, **settings)
    expected = result(answer.text, answer.record.model_dump(mode="json"))
    chunks = list(pack.stream(PROMPT, max_new_tokens=12, **settings))
    record = chunks[-1].record
    assert record is not None
    assert result("".join(c.text for c in chunks), record.model_dump(mode="json")) == expected

    llm = PackFuseLLM(pack=pack, max_tokens=12)
    [[generation]] = llm.generate([PROMPT], **settings).generations
    assert generation.generation_info is not None
    assert result(generation.text, generation.generation_info["fusion"]) == expected
    [[other]] = asyncio.run(llm.agenerate([PROMPT], **settings)).generations
    assert other.generation_info is not None
    assert result(other.text, other.generation_info["fusion"]) == expected

    index = PackFuse(pack=pack, max_new_tokens=12)
    response = index.complete(PROMPT, **settings)
    assert result(response.text, response.raw["fusion"]) == expected
    *_, last = index.stream_complete(PROMPT, **settings)
    assert result(last.text, last.raw["fusion"]) == expected


@every_setting
def test_chats(pack: Pack, settings: dict[str, Any]) -> None:
    answer = pack.generate(CHAT, max_new_tokens=12, **settings)
    expected = result(answer.text, answer.record.model_dump(mode="json"))

    model = ChatPackFuse(pack=pack, max_tokens=12)
    message = model.invoke(CHAT, **settings)
    assert result(message.content, message.response_metadata["fusion"]) == expected
    assert langchain_stream(model, CHAT, **settings) == expected
    later = asyncio.run(model.ainvoke(CHAT, **settings))
    assert result(later.content, later.response_metadata["fusion"]) == expected

    index = PackFuse(pack=pack, max_new_tokens=12)
    messages = [ChatMessage(role=m["role"], content=m["content"]) for m in CHAT]
    response = index.chat(messages, **settings)
    assert result(response.message.content, response.raw["fusion"]) == expected  # type: ignore[index]
    *_, last = index.stream_chat(messages, **settings)
    assert result(last.message.content, last.raw["fusion"]) == expected  # type: ignore[index]
    awaited = asyncio.run(index.achat(messages, **settings))
    assert result(awaited.message.content, awaited.raw["fusion"]) == expected  # type: ignore[index]


BAD: list[tuple[dict[str, Any], type[PackError]]] = [
    ({"stop": [""]}, ConfigError),
    ({"fusion": "mean"}, ConfigError),
    ({"weights": {"deepseek": 2.0, "mistral": -1.0}}, PackError),
    ({"constraint": "a|b"}, ConfigError),
]


@pytest.mark.parametrize(("settings", "kind"), BAD)
def test_bad_input_has_the_same_error_message(
    pack: Pack, settings: dict[str, Any], kind: type[PackError]
) -> None:
    index = PackFuse(pack=pack)
    ways: list[Callable[[], Any]] = [
        lambda: pack.generate(PROMPT, **settings),
        lambda: PackFuseLLM(pack=pack).invoke(PROMPT, **settings),
        lambda: ChatPackFuse(pack=pack).invoke(PROMPT, **settings),
        lambda: index.complete(PROMPT, **settings),
        lambda: index.chat([ChatMessage(role="user", content=PROMPT)], **settings),
    ]
    messages = set()
    for way in ways:
        with pytest.raises(kind) as caught:
            way()
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_a_prompt_that_is_too_long_has_the_same_error_message(pack: Pack) -> None:
    index = PackFuse(pack=pack, context_window=100_000)
    messages = set()
    for way in (pack.generate, PackFuseLLM(pack=pack).invoke, index.complete):
        with pytest.raises(PromptError, match="which can read 512") as caught:
            way("long " * 600)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_bad_ways_to_give_a_pack_have_the_same_error_message(pack: Pack) -> None:
    messages = set()
    for kind in (ChatPackFuse, PackFuseLLM, PackFuse):
        for arguments in ({"pack": pack, "models": ["a"]}, {}):
            with pytest.raises(ConfigError, match="one of pack, models and pack_file") as caught:
                kind(**arguments)
            messages.add(str(caught.value))
    assert len(messages) == 2
