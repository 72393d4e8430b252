"""Several answers to a prompt (`num_return_sequences`, `n`) in every front end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.tools import Completion
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

PROMPTS = ["hello the", "true long", "he"]
COUNTS = {"n": 2, "num_return_sequences": 3}


@pytest.fixture(scope="module")
def pack() -> Pack:
    """A pack whose answers begin with the first word of their prompt, so that pairs are seen."""
    return small_pack(template=TEMPLATE, prefix_cache=0)


@pytest.fixture(scope="module")
def own(pack: Pack) -> dict[str, list[str]]:
    """The best beams of every prompt alone."""
    return {
        prompt: [
            answer.text
            for answer in pack.generate(
                prompt, num_beams=4, num_return_sequences=3, max_new_tokens=6
            )
        ]
        for prompt in PROMPTS
    }


BEAMS: dict[str, Any] = {"num_beams": 4, "max_tokens": 6}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_prompt_has_its_own_answers(
    pack: Pack, own: dict[str, list[str]], name: str, count: int
) -> None:
    several, prompts = {name: COUNTS[name]}, PROMPTS[:count]
    expected = [own[prompt][: COUNTS[name]] for prompt in prompts]
    assert len({text for texts in expected for text in texts}) > count
    llm = PackFuseLLM(pack=pack, **BEAMS)
    results = [
        llm.generate(prompts, **several),
        asyncio.run(llm.agenerate(prompts, **several)),
        PackFuseLLM(pack=pack, **BEAMS, **several).generate(prompts),
    ]
    for result in results:
        assert [[each.text for each in answers] for answers in result.generations] == expected
        usage = (result.llm_output or {})["token_usage"]
        records = [
            [each.generation_info["fusion"]["usage"] for each in answers]  # type: ignore[index]
            for answers in result.generations
        ]
        assert usage["prompt_tokens"] == sum(each[0]["prompt_tokens"] for each in records)
    flat = pack.generate(prompts, num_beams=4, num_return_sequences=COUNTS[name], max_new_tokens=6)
    assert [answer.text for answer in flat] == [text for texts in expected for text in texts]


@pytest.mark.parametrize("name", COUNTS)
def test_chats_have_as_many_generations(pack: Pack, name: str) -> None:
    several = {name: COUNTS[name]}
    chats = [[HumanMessage(prompt)] for prompt in PROMPTS]
    expected = [
        [
            answer.text
            for answer in pack.generate(
                [{"role": "user", "content": prompt}],
                num_beams=4,
                num_return_sequences=COUNTS[name],
                max_new_tokens=6,
            )
        ]
        for prompt in PROMPTS
    ]
    chat = ChatPackFuse(pack=pack, **BEAMS)
    results = [
        chat.generate(chats, **several),  # type: ignore[arg-type]
        asyncio.run(chat.agenerate(chats, **several)),  # type: ignore[arg-type]
        ChatPackFuse(pack=pack, **BEAMS, **several).generate(chats),  # type: ignore[arg-type]
    ]
    for result in results:
        assert [[each.text for each in answers] for answers in result.generations] == expected


def one_place(pack: Pack, several: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Calls that return one answer to a prompt."""
    kinds: dict[str, Any] = {
        "llm": PackFuseLLM(pack=pack, **BEAMS), "chat": ChatPackFuse(pack=pack, **BEAMS),
    }  # fmt: skip
    index = PackFuse(pack=pack, max_new_tokens=6)
    messages = [ChatMessage("hello")]

    async def read(stream: Any) -> list[Any]:
        return [item async for item in stream]

    async def read_later(stream: Any) -> list[Any]:
        return [item async for item in await stream]

    calls: dict[str, Callable[[], Any]] = {
        "Pack.stream": lambda: list(pack.stream("hello", num_return_sequences=2, do_sample=True)),
        "Completion": lambda: Completion(
            pack, "hello", num_return_sequences=2, do_sample=True
        ).answer(),
        "complete": lambda: index.complete("hello", **several),
        "stream_complete": lambda: list(index.stream_complete("hello", **several)),
        "acomplete": lambda: asyncio.run(index.acomplete("hello", **several)),
        "astream_complete": lambda: asyncio.run(
            read_later(index.astream_complete("hello", **several))
        ),
        "chat": lambda: index.chat(messages, **several),
        "stream_chat": lambda: list(index.stream_chat(messages, **several)),
        "achat": lambda: asyncio.run(index.achat(messages, **several)),
        "astream_chat": lambda: asyncio.run(read_later(index.astream_chat(messages, **several))),
        "constructor": lambda: PackFuse(pack=pack, **several),
    }
    for kind, model in kinds.items():
        calls |= {
            f"{kind}.invoke": lambda model=model: model.invoke("hello", **several),
            f"{kind}.bind": lambda model=model: model.bind(**several).invoke("hello"),
            f"{kind}.batch": lambda model=model: model.batch(["hello", "he"], **several),
            f"{kind}.stream": lambda model=model: list(model.stream("hello", **several)),
            f"{kind}.ainvoke": lambda model=model: asyncio.run(model.ainvoke("hello", **several)),
            f"{kind}.abatch": lambda model=model: asyncio.run(
                model.abatch(["hello", "he"], **several)
            ),
            f"{kind}.astream": lambda model=model: asyncio.run(
                read(model.astream("hello", **several))
            ),
        }
    return calls


@pytest.mark.parametrize("name", COUNTS)
def test_a_place_for_one_answer_refuses_several_by_name(pack: Pack, name: str) -> None:
    for kind, call in one_place(pack, {name: COUNTS[name]}).items():
        with pytest.raises(ConfigError, match=r"one answer.*num_return_sequences=") as caught:
            call()
        assert str(caught.value), kind
    assert pack.generate("hello", max_new_tokens=2).text  # and nothing is broken by it
