"""Many calls at the same time: the event loop runs, cancelling stops work, errors are raised."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core.llms import ChatMessage
from transformers import LogitsProcessor

CHAT = [ChatMessage("Who is there?")]
PATIENCE = 60
"""Seconds until a test that waits fails; a test that passes never waits that long."""


class Gate(LogitsProcessor):
    """Stops every step until it is released, and counts the steps."""

    def __init__(self, steps: int = 0) -> None:
        """Let some steps through from the start."""
        self.let_through = threading.Semaphore(steps)
        self.reached = threading.Event()
        self.steps = 0

    def __call__(self, input_ids, scores):
        """One step."""
        self.steps += 1
        self.reached.set()
        if not self.let_through.acquire(timeout=PATIENCE):
            raise TimeoutError("the event loop did not run while the pack was working")
        return scores

    def open(self) -> None:
        """Let everything through."""
        self.let_through.release(10_000)


class Broken(LogitsProcessor):
    """Fails at its third step."""

    steps = 0

    def __call__(self, input_ids, scores):
        """One step."""
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("the third step failed")
        return scores


async def drain(stream) -> list:
    return [item async for item in await stream]


WAYS = {
    "acomplete": lambda llm, **arguments: llm.acomplete("Once", **arguments),
    "achat": lambda llm, **arguments: llm.achat(CHAT, **arguments),
    "astream_complete": lambda llm, **arguments: drain(llm.astream_complete("Once", **arguments)),
    "astream_chat": lambda llm, **arguments: drain(llm.astream_chat(CHAT, **arguments)),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_runs_during_a_call(llm, way):
    async def run():
        gate = Gate()
        task = asyncio.ensure_future(WAYS[way](llm, logits_processor=[gate]))
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        gate.open()
        await task
        return gate.steps

    assert asyncio.run(run()) == 8


def test_the_loop_runs_between_the_items_of_a_stream(llm):
    async def run():
        gate = Gate()
        task = asyncio.ensure_future(drain(llm.astream_chat(CHAT, logits_processor=[gate])))
        for step in range(1, 9):
            while gate.steps < step:
                await asyncio.sleep(0.001)
            gate.let_through.release()
        return (await task)[-1].message.content

    assert asyncio.run(run()) == llm.chat(CHAT).message.content


@pytest.mark.parametrize("way", WAYS)
def test_cancelling_a_task_stops_the_work(llm, way):
    async def run():
        gate = Gate(2)
        task = asyncio.ensure_future(WAYS[way](llm, logits_processor=[gate], max_tokens=500))
        while gate.steps < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        # A pack answers one call after the other: after this call, the cancelled one is done.
        await llm.acomplete("Once")
        return gate.steps

    assert asyncio.run(run()) <= 4


@pytest.mark.parametrize("kind", ["complete", "chat"])
def test_closing_an_async_stream_stops_the_work(llm, events, kind):
    async def run():
        gate = Gate(3)
        arguments = {"logits_processor": [gate], "max_tokens": 500}
        if kind == "chat":
            stream = await llm.astream_chat(CHAT, **arguments)
        else:
            stream = await llm.astream_complete("Once", **arguments)
        await anext(stream)
        await stream.aclose()
        gate.open()
        await llm.acomplete("Once")
        return gate.steps

    assert asyncio.run(run()) <= 5


@pytest.mark.parametrize("kind", ["complete", "chat"])
def test_closing_a_stream_stops_the_work(llm, events, kind):
    gate = Gate(500)
    arguments = {"logits_processor": [gate], "max_tokens": 500}
    stream = (
        llm.stream_chat(CHAT, **arguments)
        if kind == "chat"
        else llm.stream_complete("Once", **arguments)
    )
    next(stream)
    next(stream)
    stream.close()
    llm.complete("Once")
    steps = gate.steps
    llm.complete("Once")
    assert gate.steps == steps < 50


def test_a_stream_that_is_not_read_runs_nothing(llm):
    gate = Gate()
    stream = llm.stream_chat(CHAT, logits_processor=[gate])
    stream.close()
    assert llm.complete("Once").text
    assert gate.steps == 0


@pytest.mark.parametrize("way", [*WAYS, "complete", "chat", "stream_complete", "stream_chat"])
def test_errors_inside_generation_reach_the_caller(llm, way):
    def run():
        arguments = {"logits_processor": [Broken()]}
        if way in WAYS:
            return asyncio.run(WAYS[way](llm, **arguments))
        answer = getattr(llm, way)(CHAT if "chat" in way else "Once", **arguments)
        return list(answer) if way.startswith("stream") else answer

    with pytest.raises(RuntimeError, match="the third step failed"):
        run()
    assert llm.complete("Once").text


def test_many_calls_have_the_answers_of_single_calls(llm):
    def arguments(number):
        return [
            {"max_tokens": 4 + number % 3},
            {"fusion": "unite", "weighting": "sim"},
            {"temperature": 0.8, "seed": number},
            {"stop": ["a"]},
        ][number % 4]

    prompts = [f"Number {number}: " for number in range(16)]
    alone = [llm.complete(p, **arguments(n)).text for n, p in enumerate(prompts)]

    async def tasks():
        calls = [llm.acomplete(p, **arguments(n)) for n, p in enumerate(prompts)]
        streams = [
            drain(llm.astream_complete(p, **arguments(n))) for n, p in enumerate(prompts[:8])
        ]
        done = await asyncio.gather(*calls, *streams)
        return [item[-1].text if isinstance(item, list) else item.text for item in done]

    assert asyncio.run(tasks()) == [*alone, *alone[:8]]
    with ThreadPoolExecutor(8) as threads:
        texts = threads.map(lambda n: llm.complete(prompts[n], **arguments(n)).text, range(16))
        assert list(texts) == alone


def test_a_stream_that_is_closed_early_releases_the_pack(llm):
    for item in llm.stream_chat(CHAT, max_tokens=500):
        if item.delta:
            break
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(llm.complete, "Once").result(PATIENCE).text
