"""Events, token counts and fusion records: one for each call, in every way of calling."""

from __future__ import annotations

import asyncio
import threading

import llama_index_instrumentation
import pytest
from llama_index.core import Document, ListIndex, Response
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Thread
from llama_index.llms.packfuse import FusionCollector, PackFuse, attach_fusion, collect_fusion

CHAT = [ChatMessage("Who is there?")]


async def drain(stream) -> list:
    return [item async for item in await stream]


WAYS = {
    "complete": ("Completion", lambda llm: llm.complete("Once")),
    "stream_complete": ("Completion", lambda llm: list(llm.stream_complete("Once"))),
    "acomplete": ("Completion", lambda llm: asyncio.run(llm.acomplete("Once"))),
    "astream_complete": (
        "Completion",
        lambda llm: asyncio.run(drain(llm.astream_complete("Once"))),
    ),
    "chat": ("Chat", lambda llm: llm.chat(CHAT)),
    "stream_chat": ("Chat", lambda llm: list(llm.stream_chat(CHAT))),
    "achat": ("Chat", lambda llm: asyncio.run(llm.achat(CHAT))),
    "astream_chat": ("Chat", lambda llm: asyncio.run(drain(llm.astream_chat(CHAT)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_has_its_events_once(llm, events, way):
    kind, call = WAYS[way]
    answer = call(llm)
    items = len(answer) if isinstance(answer, list) else 0
    assert events.names() == [
        f"LLM{kind}StartEvent",
        *[f"LLM{kind}InProgressEvent"] * items,
        f"LLM{kind}EndEvent",
    ]
    start, end = events.kept[0], events.kept[-1]
    assert start.model_dict["model_name"] == "deepseek+mistral"
    assert end.response.raw["fusion"]["members"] == ["deepseek", "mistral"]
    assert start.span_id == end.span_id
    assert start.span_id.startswith(f"PackFuse.{way}-")


@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_counted_as_the_pack_counts_them(pack, way):
    def never(text: str) -> list:
        raise AssertionError(f"counted by guess: {text!r}")

    counter = TokenCountingHandler(tokenizer=never)
    llm = PackFuse(pack=pack, max_new_tokens=5, callback_manager=CallbackManager([counter]))
    answer = WAYS[way][1](llm)
    usage = (answer[-1] if isinstance(answer, list) else answer).raw["usage"]
    assert len(counter.llm_token_counts) == 1
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] == 5


def test_an_error_is_an_event_and_is_raised(llm, events):
    with pytest.raises(ValueError, match="stop string"):
        llm.chat(CHAT, stop=[""])
    assert "LLMChatEndEvent" not in events.names()


@pytest.mark.parametrize("way", WAYS)
def test_a_collector_gets_each_record_once(llm, way):
    with collect_fusion() as fusion:
        answer = WAYS[way][1](llm)
    last = answer[-1] if isinstance(answer, list) else answer
    assert fusion.records == [last.raw["fusion"]]
    [call] = fusion.calls
    assert call.kind == WAYS[way][0].lower()
    assert fusion.by_span == {call.span_id: last.raw["fusion"]}
    assert call.span_id.startswith(f"PackFuse.{way}-")


def test_a_collector_collects_its_own_block_only(llm):
    llm.complete("Before")
    with collect_fusion() as outer:
        llm.complete("One")
        with collect_fusion() as inner:
            llm.complete("Two")
        stranger = threading.Thread(target=llm.complete, args=("Elsewhere",))
        stranger.start()
        stranger.join()
        own = Thread(target=llm.complete, args=("LlamaIndex's own threads",))
        own.start()
        own.join()
    llm.complete("After")
    assert (len(outer.calls), len(inner.calls)) == (3, 1)
    assert outer.records[1] == inner.records[0]


def test_collectors_of_tasks_do_not_mix(llm):
    async def call(tokens: int):
        with collect_fusion() as fusion:
            await llm.acomplete("Once", max_tokens=tokens)
        return [record["usage"]["completion_tokens"] for record in fusion.records]

    async def both():
        return await asyncio.gather(call(3), call(4), call(5))

    assert asyncio.run(both()) == [[3], [4], [5]]


def test_a_collector_can_collect_all_calls(llm):
    root, everything = llama_index_instrumentation.get_dispatcher(), FusionCollector()
    before = list(root.event_handlers)
    root.add_event_handler(everything)
    try:
        thread = threading.Thread(target=llm.complete, args=("Once",))
        thread.start()
        thread.join()
    finally:
        root.event_handlers = before
    assert len(everything.calls) == 1


def test_other_llms_have_no_record(llm):
    from llama_index.core.llms import MockLLM

    with collect_fusion() as fusion:
        MockLLM().complete("Once")
        MockLLM().chat(CHAT)
    assert fusion.calls == []


def test_predict_is_one_chat_or_one_completion(pack, events):
    prompt = PromptTemplate("Say {word}.")
    for is_chat, kind in ((True, "Chat"), (False, "Completion")):
        events.kept.clear()
        llm = PackFuse(pack=pack, max_new_tokens=4, is_chat_model=is_chat)
        text = llm.predict(prompt, word="hello")
        assert text in str(events.kept[-2].response)
        assert events.names()[1:-1] == [f"LLM{kind}StartEvent", f"LLM{kind}EndEvent"]


def test_records_reach_the_response_of_a_query_engine(settings):
    index = ListIndex.from_documents([Document(text="The sky is green on Mars.")])
    with collect_fusion() as fusion:
        response = index.as_query_engine().query("Which color is the sky?")
    assert isinstance(response, Response)
    documents = dict(response.metadata)
    assert attach_fusion(response, fusion) is response
    assert response.metadata == {**documents, "fusion": fusion.records}
    assert len(fusion.records) == 1
    assert sum(fusion.records[0]["weights"].values()) == pytest.approx(1)


def test_records_reach_a_streamed_response_when_it_is_read(settings):
    index = ListIndex.from_documents([Document(text="The sky is green on Mars.")])
    with collect_fusion() as fusion:
        response = index.as_query_engine(streaming=True).query("Which color is the sky?")
        assert isinstance(response, StreamingResponse)
        text = "".join(response.response_gen)
    attach_fusion(response, fusion.records)
    assert text
    assert response.metadata["fusion"][0]["usage"]["completion_tokens"] == 8
    assert attach_fusion(Response("x"), []).metadata == {"fusion": []}
