"""Packs under asyncio: the event loop is not blocked, errors are raised, cancelling stops work."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from packfuse import Pack
from packfuse.aio import MAX_THREADS, call, iterate
from packfuse.constraint import Regex
from packfuse.errors import PromptError
from packfuse.tools import Completion, ReplyDelta, Turn
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack
from tests.support.steps import Steps, settle

PROMPT = "The loop runs on"
TIMEOUT = 60.0
"""Seconds after which a test fails."""


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two random members."""
    return small_pack(template=TEMPLATE, context=2048)


@pytest.fixture(autouse=True)
def nothing_waits(pack: Pack) -> Iterator[None]:
    """After every test: no streams run, and no calls wait."""
    yield
    with pack.lock:
        assert pack.scheduler._waiting == []
    settle()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT))


class Halt:
    """Stops generation at one step until `go` is set."""

    def __init__(self, patch: pytest.MonkeyPatch, step: int) -> None:
        self.step = step
        self.reached, self.go = threading.Event(), threading.Event()
        self.steps = Steps(patch, self._act)

    def _act(self, count: int) -> None:
        if count == self.step:
            self.reached.set()
            assert self.go.wait(TIMEOUT)

    async def until_reached(self) -> None:
        while not self.reached.is_set():
            await asyncio.sleep(0.001)


def test_a_call_returns_what_the_work_returns(pack: Pack) -> None:
    completion = Completion(pack, PROMPT, max_new_tokens=6)
    assert run(call(completion.answer)).text == completion.answer().text


async def collect(items: AsyncIterator[ReplyDelta]) -> list[ReplyDelta]:
    return [item async for item in items]


def joined(deltas: list[ReplyDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_a_stream_gives_the_pieces_in_order(pack: Pack) -> None:
    turn = Turn(pack, [{"role": "user", "content": PROMPT}], max_new_tokens=12)
    deltas = run(collect(iterate(turn.stream)))
    assert joined(deltas) == turn.answer().text
    assert [delta.reply is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]


def test_an_empty_iterator_ends() -> None:
    assert run(collect(iterate(lambda _: iter(())))) == []


def test_errors_reach_the_caller(pack: Pack) -> None:
    completion = Completion(pack, "word " * 3000, max_new_tokens=6)
    with pytest.raises(PromptError, match="can read 2048"):
        run(call(completion.answer))
    with pytest.raises(PromptError, match="can read 2048"):
        run(collect(iterate(completion.stream)))
    assert run(call(Completion(pack, PROMPT, max_new_tokens=2).answer)).text is not None


def test_an_error_follows_the_items_before_it() -> None:
    def work(_: threading.Event) -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("inside")

    seen: list[int] = []

    async def main() -> None:
        async for item in iterate(work):
            seen.append(item)

    with pytest.raises(ValueError, match="inside"):
        run(main())
    assert seen == [1, 2]


def test_the_work_has_the_context_variables_of_the_caller() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def main() -> tuple[str, list[str]]:
        variable.set("mine")
        one = await call(lambda _: variable.get())
        return one, [item async for item in iterate(lambda _: iter([variable.get()]))]

    assert run(main()) == ("mine", ["mine"])
    assert variable.get() == "none"


@pytest.mark.parametrize("streamed", [False, True])
def test_the_loop_runs_on_while_a_pack_generates(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """Every step waits for the event loop to run; a blocked loop would never run."""
    ticks = 0

    def wait_for_a_tick(_: int) -> None:
        before, pause = ticks, threading.Event()
        for _ in range(int(TIMEOUT * 1000)):
            if ticks > before:
                return
            pause.wait(0.001)
        raise AssertionError("the loop stands still")

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        completion = Completion(pack, PROMPT, max_new_tokens=20, constraint=Regex("[a-z]{30}"))
        if streamed:
            assert len(joined(await collect(iterate(completion.stream)))) >= 20
        else:
            assert len((await call(completion.answer)).text) >= 20
        ticking.cancel()

    steps = Steps(monkeypatch, wait_for_a_tick)
    run(main())
    assert steps.count == 20
    assert ticks > steps.count


def test_cancelling_the_task_of_a_call_stops_generation_within_a_step(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt = Halt(monkeypatch, step=4)

    async def main() -> None:
        completion = Completion(pack, PROMPT, max_new_tokens=500, constraint=Regex("[a-z]{900}"))
        task = asyncio.create_task(call(completion.answer))
        await halt.until_reached()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        halt.go.set()

    run(main())
    with pack.lock:
        assert halt.steps.count == halt.step


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_leaving_a_stream_stops_generation_within_a_step(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    halt = Halt(monkeypatch, step=6)
    seen: list[ReplyDelta] = []

    async def read() -> None:
        completion = Completion(pack, PROMPT, max_new_tokens=500, constraint=Regex("[a-z]{900}"))
        async with aclosing(iterate(completion.stream)) as deltas:
            async for delta in deltas:
                seen.append(delta)
                if how == "close":
                    await halt.until_reached()
                    return

    async def main() -> None:
        task = asyncio.create_task(read())
        await halt.until_reached()
        if how == "close":
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        halt.go.set()

    run(main())
    settle()
    with pack.lock:
        assert halt.steps.count == halt.step
    assert len(seen) < 7


def test_a_call_that_is_cancelled_while_it_waits_never_begins(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch, lambda _: None)

    async def main() -> None:
        completion = Completion(pack, PROMPT, max_new_tokens=500)
        with pack.lock:
            tasks = [
                asyncio.create_task(call(completion.answer)),
                asyncio.create_task(collect(iterate(completion.stream))),
            ]
            while not pack.scheduler._waiting:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(found, asyncio.CancelledError)
                for found in await asyncio.gather(*tasks, return_exceptions=True)
            )
        while pack.scheduler._waiting:
            await asyncio.sleep(0.001)

    run(main())
    with pack.lock:
        assert steps.count == 0


def test_a_closed_loop_leaves_no_running_thread(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt = Halt(monkeypatch, step=3)

    async def main() -> None:
        completion = Completion(pack, PROMPT, max_new_tokens=500, constraint=Regex("[a-z]{900}"))
        reading = asyncio.create_task(collect(iterate(completion.stream)))
        await halt.until_reached()
        assert not reading.done()

    run(main())
    halt.go.set()
    settle()
    with pack.lock:
        assert halt.steps.count == halt.step


SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 3},
    {"max_new_tokens": 5},
    {"max_new_tokens": 3, "fusion": "unite"},
    {"max_new_tokens": 4, "constraint": Regex("[a-z ]{2,}")},
]


def test_many_calls_and_streams_at_once_give_the_same_answers(pack: Pack) -> None:
    """More calls than threads."""
    count = MAX_THREADS + 6
    completions: list[Completion] = []
    for index in range(count):
        settings, text = SETTINGS[index % 4], f"{'Word ' * (index % 3)}number {index % 11}"
        if index % 5 == 4:
            completions.append(Turn(pack, [{"role": "user", "content": text}], **settings))
        else:
            completions.append(Completion(pack, text, **settings))
    alone = [completion.answer().text for completion in completions]

    async def one(index: int) -> str:
        if index % 3 == 2:
            return joined(await collect(iterate(completions[index].stream)))
        return (await call(completions[index].answer)).text

    async def main() -> list[str]:
        return list(await asyncio.gather(*map(one, range(count))))

    assert run(main()) == alone
    assert len(set(alone)) > 10
