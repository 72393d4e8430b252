"""Log-probabilities in OpenAI's layout, and LlamaIndex's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_packfuse import ChatPackFuse, PackFuseLLM
from llama_index.core.llms import ChatMessage
from llama_index.llms.packfuse import PackFuse

from packfuse import Pack
from packfuse.errors import ConfigError
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

PROMPT = "hello the"


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, prefix_cache=0)


def own(pack: Pack, prompt: Any, top: int) -> list[dict[str, Any]]:
    """The entries that the trace of the pack's own answer gives."""
    trace = pack.generate(prompt, max_new_tokens=12, top_logprobs=top).record.trace

    def entry(token: Any) -> dict[str, Any]:
        return {"token": token.text, "bytes": token.utf8, "logprob": token.logprob}

    assert trace
    return [
        {**entry(step.token), "top_logprobs": [entry(a) for a in step.alternatives]}
        for step in trace
    ]


@pytest.mark.parametrize("top", [None, 0, 3])
@pytest.mark.parametrize("place", ["constructor", "call", "bind"])
def test_chats(pack: Pack, place: str, top: int | None) -> None:
    settings: dict[str, Any] = {"logprobs": True}
    settings |= {} if top is None else {"top_logprobs": top}
    expected = own(pack, [{"role": "user", "content": PROMPT}], top or 0)
    there = settings if place == "constructor" else {}
    model: Any = ChatPackFuse(pack=pack, max_tokens=12, **there)
    call = settings if place == "call" else {}
    model = model.bind(**settings) if place == "bind" else model
    message = model.invoke(PROMPT, **call)
    assert message.response_metadata["logprobs"] == {"content": expected}
    assert message.response_metadata["fusion"]["trace"] is None
    assert json.loads(json.dumps(message.response_metadata)) == message.response_metadata
    assert b"".join(bytes(e["bytes"]) for e in expected).decode(errors="replace") == message.text
    later = asyncio.run(model.ainvoke(PROMPT, **call))
    assert later.response_metadata["logprobs"] == {"content": expected}
    chunks = list(model.stream(PROMPT, **call))
    whole: Any = None
    for chunk in chunks:
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
    assert whole.response_metadata["logprobs"] == {"content": expected}
    assert sum("logprobs" in chunk.response_metadata for chunk in chunks) > 3


def test_completions(pack: Pack) -> None:
    expected = {"content": own(pack, PROMPT, 2)}
    llm = PackFuseLLM(pack=pack, max_tokens=12, logprobs=True, top_logprobs=2)
    [[generation]] = llm.generate([PROMPT]).generations
    assert generation.generation_info is not None
    assert generation.generation_info["logprobs"] == expected
    traced = llm.generate([PROMPT], trace=True).generations[0][0].generation_info
    assert traced is not None
    assert len(traced["fusion"]["trace"]) == len(expected["content"])
    whole: Any = None
    for chunk in llm._stream(PROMPT):
        whole = chunk if whole is None else whole + chunk
    assert whole.generation_info["logprobs"] == expected


@pytest.mark.parametrize("top", [0, 3])
def test_llama_index(pack: Pack, top: int) -> None:
    llm = PackFuse(pack=pack, max_new_tokens=12)
    settings = {"logprobs": True, "top_logprobs": top}
    chat = [ChatMessage(PROMPT)]
    responses: list[Any] = [
        llm.chat(chat, **settings),
        list(llm.stream_chat(chat, **settings))[-1],
        PackFuse(pack=pack, max_new_tokens=12, **settings).chat(chat),
    ]
    for response in responses:
        expected = own(pack, [{"role": "user", "content": PROMPT}], top)
        assert [step[0].token for step in response.logprobs] == [e["token"] for e in expected]
        for step, entry in zip(response.logprobs, expected, strict=True):
            top_entries = entry.pop("top_logprobs")
            others = [e for e in top_entries if e != entry]
            assert [other.logprob for other in step[1:]] == [e["logprob"] for e in others]
            assert step[0].bytes == entry["bytes"]
    assert len(llm.complete(PROMPT, **settings).logprobs or []) == len(own(pack, PROMPT, top))
    assert llm.complete(PROMPT).logprobs is None


@pytest.mark.parametrize("kind", [ChatPackFuse, PackFuseLLM, PackFuse])
def test_what_has_no_effect_is_refused(pack: Pack, kind: Any) -> None:
    for settings in ({"logprobs": False, "top_logprobs": 2}, {"logprobs": 5}):
        with pytest.raises(ValueError, match="logprobs"):  # ConfigError, or pydantic's
            kind(pack=pack, **settings)
    with pytest.raises(ConfigError, match="top_logprobs are not recorded"):
        kind(pack=pack, logprobs=True, num_beams=2)
