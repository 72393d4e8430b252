"""Structured output that was cut off is an error that names the cut, in every front end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_packfuse import ChatPackFuse
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.packfuse import PackFuse
from pydantic import BaseModel, field_validator

from packfuse import Pack
from packfuse.errors import ConfigError
from tests.support.scripted import TEMPLATE, scripted_pack
from tests.support.small import scripted_small

pytestmark = [
    pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset"),
    # LlamaIndex's structured LLMs call it.
    pytest.mark.filterwarnings("ignore:The `json` method is deprecated"),
]

FACT = {"subject": "the long the long", "count": 3}


class Fact(BaseModel):
    """A fact."""

    subject: str
    count: int


class Picky(BaseModel):
    """A fact that nothing fits."""

    subject: str
    count: int

    @field_validator("count")
    @classmethod
    def _never(cls, value: int) -> int:
        raise ValueError("no number is good enough")


class Typed(TypedDict):
    """A fact."""

    subject: str
    count: int


SCHEMAS: dict[str, Any] = {
    "pydantic": Fact,
    "TypedDict": Typed,
    "JSON schema": {**Fact.model_json_schema(), "description": "A fact."},
    "OpenAI tool": {
        "name": "Fact",
        "description": "A fact.",
        "parameters": Fact.model_json_schema(),
    },
}
METHODS = ("json_schema", "json_mode", "function_calling")


def script(prompt: str) -> str:
    """A call where the prompt forces one, else JSON."""
    data = json.dumps(FACT)
    if "You must use" not in prompt:
        return data
    name = next(name for name in ("Fact", "Picky", "Typed") if f'"name": "{name}"' in prompt)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {data}}}\n</tool_call>'


@pytest.fixture(scope="module")
def pack() -> Pack:
    return scripted_small(script, template=TEMPLATE)


def test_scripted_members_have_one_interface() -> None:
    assert scripted_pack(script).generate([{"role": "user", "content": "?"}]).text == script("")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_whole_answer_is_parsed(pack: Pack, method: Any, schema: str) -> None:
    chat = ChatPackFuse(pack=pack, max_tokens=400)
    expected = Fact(**FACT) if schema == "pydantic" else FACT
    model = chat.with_structured_output(SCHEMAS[schema], method=method)
    assert model.invoke("A fact") == expected
    assert list(model.stream("A fact"))[-1] == expected
    assert asyncio.run(model.ainvoke("A fact")) == expected
    raw = chat.with_structured_output(SCHEMAS[schema], method=method, include_raw=True)
    found = raw.invoke("A fact")
    assert (found["parsed"], found["parsing_error"]) == (expected, None)


@pytest.mark.parametrize("length", [1, 5, 20])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_answer_that_is_cut_off_is_an_error(
    pack: Pack, method: Any, schema: str, length: int
) -> None:
    chat = ChatPackFuse(pack=pack)
    settings = {"method": method, "max_tokens": length}
    model = chat.with_structured_output(SCHEMAS[schema], **settings)
    calls: list[Callable[[], Any]] = [
        lambda: model.invoke("A fact"),
        lambda: list(model.stream("A fact")),
        lambda: model.batch(["A fact"]),
        lambda: asyncio.run(model.ainvoke("A fact")),
        lambda: chat.with_structured_output(SCHEMAS[schema], method=method).invoke(
            "A fact", max_tokens=length
        ),
    ]
    for call in calls:
        with pytest.raises(OutputParserException, match=r"'length'.*raise max_tokens"):
            call()
    raw = chat.with_structured_output(SCHEMAS[schema], include_raw=True, **settings)
    for found in (raw.invoke("A fact"), asyncio.run(raw.ainvoke("A fact"))):
        assert found["parsed"] is None
        assert "'length'" in str(found["parsing_error"])
        assert found["raw"].response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_answer_that_does_not_fit_is_another_error(pack: Pack, method: Any) -> None:
    chat = ChatPackFuse(pack=pack, max_tokens=400)
    with pytest.raises(
        OutputParserException, match=r"does not fit Picky: [\s\S]*good enough"
    ) as caught:
        chat.with_structured_output(Picky, method=method).invoke("A fact")
    assert json.loads(str(caught.value.llm_output)) == FACT


def test_an_unknown_method_is_refused(pack: Pack) -> None:
    with pytest.raises(ConfigError, match=r"'yaml'.*json_schema"):
        ChatPackFuse(pack=pack).with_structured_output(Fact, method="yaml")  # type: ignore[arg-type]


def index_ways(llm: PackFuse) -> dict[str, Callable[[], Any]]:
    """All ways of LlamaIndex to a structured answer; a stream is read to its end."""
    prompt, structured = PromptTemplate("A fact"), llm.as_structured_llm(Fact)
    chat = [ChatMessage("A fact")]

    async def read(stream: Any) -> list[Any]:
        return [item async for item in await stream]

    return {
        "structured_predict": lambda: llm.structured_predict(Fact, prompt),
        "astructured_predict": lambda: asyncio.run(llm.astructured_predict(Fact, prompt)),
        "stream_structured_predict": lambda: list(llm.stream_structured_predict(Fact, prompt))[-1],
        "astream_structured_predict": lambda: asyncio.run(
            read(llm.astream_structured_predict(Fact, prompt))
        )[-1],
        "chat": lambda: structured.chat(chat).raw,
        "achat": lambda: asyncio.run(structured.achat(chat)).raw,
        "complete": lambda: structured.complete("A fact").raw,
        "stream_chat": lambda: list(structured.stream_chat(chat))[-1].raw,
        "astream_chat": lambda: asyncio.run(read(structured.astream_chat(chat)))[-1].raw,
    }


def test_whole_answers_of_llama_index_are_parsed(pack: Pack) -> None:
    for name, call in index_ways(PackFuse(pack=pack, max_new_tokens=400)).items():
        assert call().model_dump() == FACT, name


@pytest.mark.parametrize("length", [1, 5, 20])
def test_answers_of_llama_index_that_are_cut_off_are_errors(pack: Pack, length: int) -> None:
    for call in index_ways(PackFuse(pack=pack, max_new_tokens=length)).values():
        with pytest.raises(ValueError, match=r"'length'"):
            call()
