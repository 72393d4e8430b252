"""The use of the text-completion model in LangChain, on tiny random models."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import GenerationChunk
from langchain_packfuse import PackFuseLLM, get_fusion_callback

from packfuse import Pack
from packfuse.errors import ConfigError, PromptError

PROMPT = "The capital of France is"


@pytest.fixture
def llm(tiny: Pack) -> PackFuseLLM:
    """Short answers."""
    return PackFuseLLM(pack=tiny, max_tokens=8)


def test_the_text_is_the_packs_own_without_the_prompt(llm: PackFuseLLM, tiny: Pack) -> None:
    expected = tiny.generate(PROMPT, max_new_tokens=8).text
    assert llm.invoke(PROMPT) == expected
    assert "".join(llm.stream(PROMPT)) == expected
    assert llm.batch([PROMPT, "Hello"])[0] == expected


async def test_async_methods_give_the_same_answer(llm: PackFuseLLM) -> None:
    expected = llm.invoke(PROMPT)
    assert await llm.ainvoke(PROMPT) == expected
    assert "".join([text async for text in llm.astream(PROMPT)]) == expected
    assert (await llm.abatch([PROMPT, "Hello"]))[0] == expected


async def test_a_prompt_of_a_batch_that_fails_fails_alone(llm: PackFuseLLM) -> None:
    prompts = [PROMPT, "word " * 5000, "Hello"]
    expected = [llm.invoke(PROMPT), llm.invoke("Hello")]
    for answers in (
        llm.batch(prompts, return_exceptions=True),
        await llm.abatch(prompts, return_exceptions=True),
    ):
        assert [answers[0], answers[2]] == expected
        assert isinstance(answers[1], PromptError)
    with pytest.raises(PromptError):
        llm.batch(prompts)
    with pytest.raises(PromptError):
        await llm.abatch(prompts)


def test_every_generation_has_its_own_record(llm: PackFuseLLM) -> None:
    result = llm.generate([PROMPT, "One two three four"])
    infos: list[Any] = [each[0].generation_info for each in result.generations]
    assert infos[0]["fusion"]["prompt_loss"] != infos[1]["fusion"]["prompt_loss"]
    assert [info["finish_reason"] for info in infos] == ["length", "length"]
    assert result.llm_output is not None
    assert result.llm_output["token_usage"]["completion_tokens"] == 16


def test_streams_carry_the_record_once_and_report_their_tokens(llm: PackFuseLLM) -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.chunks: list[GenerationChunk] = []

        def on_llm_new_token(self, token: str, *, chunk: Any = None, **kwargs: Any) -> None:
            assert token == chunk.text
            self.chunks.append(chunk)

    tokens = Tokens()
    with get_fusion_callback() as fusion:
        text = "".join(llm.stream(PROMPT, config={"callbacks": [tokens]}))
    assert "".join(chunk.text for chunk in tokens.chunks) == text
    assert sum(bool(chunk.generation_info) for chunk in tokens.chunks) == 1
    assert len(fusion.records) == 1


def test_a_call_is_part_of_the_cache_key(tiny: Pack) -> None:
    llm = PackFuseLLM(pack=tiny, max_tokens=8, cache=InMemoryCache())
    first = llm.invoke(PROMPT)
    other = llm.invoke(PROMPT, weights={"deepseek": 0.0, "mistral": 1.0})
    assert (
        other
        == tiny.generate(PROMPT, max_new_tokens=8, weights={"deepseek": 0.0, "mistral": 1.0}).text
    )
    assert other != first
    assert llm.invoke(PROMPT) == first
    assert llm.invoke(PROMPT, min_new_tokens=2, max_tokens=3) != first


async def test_a_call_is_part_of_the_cache_key_of_async_calls(tiny: Pack) -> None:
    llm = PackFuseLLM(pack=tiny, max_tokens=8, cache=InMemoryCache())
    assert await llm.ainvoke(PROMPT) != await llm.ainvoke(PROMPT, max_tokens=2)


def test_stop_strings_are_not_part_of_the_text(llm: PackFuseLLM) -> None:
    whole = llm.invoke(PROMPT)
    stop = whole[5:7]
    assert llm.invoke(PROMPT, stop=[stop]) == whole[: whole.index(stop)]
    assert "".join(llm.stream(PROMPT, stop=[stop])) == whole[: whole.index(stop)]


def test_errors_name_the_bad_input(llm: PackFuseLLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.invoke("")
    with pytest.raises(ConfigError, match="unite"):
        llm.invoke(PROMPT, fusion="mean")
    with pytest.raises(PromptError, match="tokens long"):
        llm.invoke("long " * 600)
