"""Many calls at the same time, cancelled calls, and calls that fail."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_packfuse import ChatPackFuse, PackFuseLLM

from packfuse import Pack
from packfuse.errors import MemberError
from packfuse.models.hf_member import HFMember
from tests.support import packs, pico
from tests.support.steps import Steps, settle

PROMPTS = [f"Tell me about number {number}" for number in range(8)]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps that packs make."""
    return Steps(monkeypatch)


def test_a_batch_shares_its_steps(tiny: Pack, steps: Steps) -> None:
    model = ChatPackFuse(pack=tiny, max_tokens=6)
    together = model.batch(PROMPTS)
    assert max(steps.sizes) > 1
    steps.sizes.clear()
    assert [m.content for m in together] == [model.invoke(p).content for p in PROMPTS]
    assert set(steps.sizes) == {1}


def test_an_llm_answers_a_batch_in_shared_steps(tiny: Pack, steps: Steps) -> None:
    llm = PackFuseLLM(pack=tiny, max_tokens=6)
    together = llm.batch(PROMPTS)
    assert max(steps.sizes) > 1
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


async def test_the_event_loop_runs_while_a_pack_answers(tiny: Pack, steps: Steps) -> None:
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
    assert before > steps.count > 0
    assert ticks - before > 12


def test_closing_a_stream_stops_generation(tiny: Pack, steps: Steps) -> None:
    stream = ChatPackFuse(pack=tiny, max_tokens=400).stream("Hello")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    made = len(steps.sizes)
    assert made < 400
    ChatPackFuse(pack=tiny, max_tokens=3).invoke("Hello")
    assert len(steps.sizes) - made == 2  # nothing of the old answer was still running


async def test_cancelling_a_task_stops_generation(tiny: Pack, steps: Steps) -> None:
    model = ChatPackFuse(pack=tiny, max_tokens=400)
    task = asyncio.create_task(model.ainvoke("Hello"))
    while not steps.sizes:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ChatPackFuse(pack=tiny, max_tokens=3).ainvoke("Hello")
    assert steps.count < 300


async def test_closing_an_async_stream_stops_generation(tiny: Pack, steps: Steps) -> None:
    async for _ in ChatPackFuse(pack=tiny, max_tokens=400).astream("Hello"):
        break
    await ChatPackFuse(pack=tiny, max_tokens=3).ainvoke("Hello")
    assert steps.count < 300


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
    settle()
    assert threading.active_count() <= threads


async def test_a_failure_reaches_an_async_caller_at_once(broken: Pack) -> None:
    model = ChatPackFuse(pack=broken, max_tokens=50)
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        async for _ in model.astream("Hello"):
            pass
    with pytest.raises(MemberError, match=r"mistral.*out of luck"):
        await model.ainvoke("Hello")
