"""Many calls at the same time, cancelled calls, and calls that fail."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from langchain_packfuse import ChatPackFuse, PackFuseLLM

from packfuse import Pack
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.errors import MemberError
from packfuse.models.hf_member import HFMember
from tests.support import packs, pico

PROMPTS = [f"Tell me about number {number}" for number in range(8)]


@pytest.fixture
def counted(tiny: Pack, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of every run of the pack's model."""
    sizes: list[int] = []
    generate = FusedForCausalLM.generate

    def counting(self: FusedForCausalLM, ids: torch.Tensor, **arguments: Any) -> Any:
        sizes.append(len(ids))
        return generate(self, ids, **arguments)

    monkeypatch.setattr(FusedForCausalLM, "generate", counting)
    return sizes


@pytest.fixture
def steps(tiny: Pack, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every step that the pack's model makes."""
    seen: list[int] = []
    forward = FusedForCausalLM.forward

    def counting(self: FusedForCausalLM, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FusedForCausalLM, "forward", counting)
    return seen


def test_a_batch_is_answered_as_batches(tiny: Pack, counted: list[int]) -> None:
    model = ChatPackFuse(pack=tiny, max_tokens=6)
    together = model.batch(PROMPTS)
    runs = list(counted)
    assert sum(runs) == len(PROMPTS)
    assert len(runs) < len(PROMPTS)
    assert [m.content for m in together] == [model.invoke(p).content for p in PROMPTS]
    assert counted[len(runs) :] == [1] * len(PROMPTS)


def test_an_llm_answers_a_batch_in_one_run(tiny: Pack, counted: list[int]) -> None:
    llm = PackFuseLLM(pack=tiny, max_tokens=6)
    together = llm.batch(PROMPTS)
    assert sum(counted) == len(PROMPTS)
    references = {llm.generate([p]).generations[0][0].generation_info["fusion"]["reference"]  # type: ignore[index]
                  for p in PROMPTS}  # fmt: skip
    assert len(counted) - len(PROMPTS) == len(references)
    assert together == [llm.invoke(p) for p in PROMPTS]


async def test_64_mixed_calls_from_threads_and_tasks_equal_the_same_calls_alone(tiny: Pack) -> None:
    chat, llm = ChatPackFuse(pack=tiny, max_tokens=5), PackFuseLLM(pack=tiny, max_tokens=5)

    def streamed(prompt: str) -> str:
        return "".join(str(chunk.content) for chunk in chat.stream(prompt))

    async def astreamed(prompt: str) -> str:
        return "".join([chunk async for chunk in llm.astream(prompt)])

    blocking: list[Any] = [
        lambda p: chat.invoke(p).content,
        lambda p: chat.invoke(p, weighting="uniform").content,
        lambda p: chat.invoke(p, temperature=1.5, seed=7).content,
        streamed,
        llm.invoke,
    ]

    async def ainvoked(prompt: str) -> str:
        return str((await chat.ainvoke(prompt)).content)

    waiting: list[Any] = [ainvoked, astreamed, llm.ainvoke]
    jobs = [(index % 8, PROMPTS[index // 8]) for index in range(64)]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(20) as threads:

        def start(kind: int, prompt: str) -> Any:
            if kind < len(blocking):
                return loop.run_in_executor(threads, blocking[kind], prompt)
            return waiting[kind - len(blocking)](prompt)

        together = await asyncio.gather(*(start(*job) for job in jobs))
        alone = [await start(*job) for job in jobs]
    assert together == alone
    assert len(set(alone)) > 8


async def test_the_event_loop_runs_while_a_pack_answers(tiny: Pack, steps: list[int]) -> None:
    model = ChatPackFuse(pack=tiny, max_tokens=12)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await model.ainvoke("Hello")
    before = ticks
    async for _ in model.astream("Hello"):
        pass
    ticking.cancel()
    assert before > len(steps) > 0
    assert ticks - before > 12


def test_closing_a_stream_stops_generation(tiny: Pack, steps: list[int]) -> None:
    stream = ChatPackFuse(pack=tiny, max_tokens=400).stream("Hello")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    made = len(steps)
    assert made < 400
    ChatPackFuse(pack=tiny, max_tokens=3).invoke("Hello")
    assert len(steps) - made == 3  # nothing of the old answer was still running


async def test_cancelling_a_task_stops_generation(tiny: Pack, steps: list[int]) -> None:
    model = ChatPackFuse(pack=tiny, max_tokens=400)
    task = asyncio.create_task(model.ainvoke("Hello"))
    while not steps:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ChatPackFuse(pack=tiny, max_tokens=3).ainvoke("Hello")
    assert len(steps) < 300


async def test_closing_an_async_stream_stops_generation(tiny: Pack, steps: list[int]) -> None:
    async for _ in ChatPackFuse(pack=tiny, max_tokens=400).astream("Hello"):
        break
    await ChatPackFuse(pack=tiny, max_tokens=3).ainvoke("Hello")
    assert len(steps) < 300


@pytest.fixture
def broken() -> Pack:
    """A pack with a member that fails after its prompt."""
    members = packs.tiny_members(["deepseek", "mistral"], seed=5)
    model = pico.tiny_model(pico.real_tokenizer("mistral"), seed=6)
    forward, count = model.forward, iter(range(100))

    @functools.wraps(forward)
    def failing(*args: Any, **kwargs: Any) -> Any:
        if next(count) > 1:
            raise RuntimeError("out of luck")
        return forward(*args, **kwargs)

    model.forward = failing  # type: ignore[method-assign]
    members[1] = HFMember(members[1].name, model, members[1].vocabulary)
    return packs.tiny_pack(members, reference="deepseek")


def test_a_failure_reaches_the_caller_at_once(broken: Pack) -> None:
    model = ChatPackFuse(pack=broken, max_tokens=50)
    threads = threading.active_count()
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        list(model.stream("Hello"))
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        model.invoke("Hello")
    assert threading.active_count() <= threads


async def test_a_failure_reaches_an_async_caller_at_once(broken: Pack) -> None:
    model = ChatPackFuse(pack=broken, max_tokens=50)
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        async for _ in model.astream("Hello"):
            pass
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        await model.ainvoke("Hello")
