"""Answers the lines of a batch with packs, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from packfuse.batch.lines import CHAT, BatchLine
from packfuse.errors import BusyError
from packfuse.pack import Pack
from packfuse.server.packs import Served
from packfuse.server.problems import RequestError, problem_of
from packfuse.server.requests import ChatRequest, TextRequest
from packfuse.tools.awaiting import Pending

_RETRY_SECONDS = 0.05
"""Time until a line whose prompts found no place in the queue is tried again, in seconds."""


class Worker:
    """Answers lines with packs."""

    def __init__(self, packs: Mapping[str, Pack]) -> None:
        """Answer with these packs, by name; a line without `model` is for the first."""
        self._served = Served.ready(**packs)
        # Twice as many as are decoded: the next ones are read while the last ones are written.
        self._lines = 2 * max(pack.settings.max_rows for pack in packs.values())

    def stream(self, lines: Iterable[BatchLine]) -> Generator[dict[str, Any]]:
        """The answers to lines, in order of completion; see `answer`.

        Closing the iterator ends what is running within one step.
        """
        with asyncio.Runner() as runner:
            found = self.answers(lines)
            try:
                while (answer := runner.run(_next(found))) is not None:
                    yield answer
            finally:
                runner.run(found.aclose())

    async def answers(self, lines: Iterable[BatchLine]) -> AsyncGenerator[dict[str, Any]]:
        """Like `stream`, for asyncio."""
        running: set[asyncio.Task[dict[str, Any]]] = set()
        try:
            for line in lines:
                running.add(asyncio.ensure_future(self.answer(line)))
                if len(running) >= self._lines:
                    done, running = await _some(running)
                    for one in done:
                        yield one.result()
            while running:
                done, running = await _some(running)
                for one in done:
                    yield one.result()
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def answer(self, line: BatchLine) -> dict[str, Any]:
        """The answer to a line, in the layout of OpenAI's batches.

        An error that concerns this line alone is an answer with its status and its message.
        """
        if line.problem:
            problem = {"code": "invalid_line", "message": line.problem}
            return _found(line, None, problem)
        try:
            request_id, body = await self._response(line)
        except Exception as error:
            found = problem_of(error, line.body)
            return _found(line, {"status_code": found.status, "request_id": "", "body": found.body})
        return _found(line, {"status_code": 200, "request_id": request_id, "body": body})

    async def _response(self, line: BatchLine) -> tuple[str, dict[str, Any]]:
        if line.body.get("stream"):
            raise RequestError(400, "a batch has no streams; leave out stream", "stream")
        name, pack = self._served.pack(line.body.get("model"))
        kind = ChatRequest if line.url == CHAT else TextRequest
        asked = kind(pack, name, line.body, line.max_tokens)
        while True:
            try:
                pending = Pending.submit(asked.calls)
                break
            except BusyError:
                await asyncio.sleep(_RETRY_SECONDS)
        return asked.heading.id, asked.response(await pending.replies())

    def close(self) -> None:
        """Close the packs."""
        self._served.close()


async def _next(found: AsyncGenerator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(found, None)


async def _some(running: set[asyncio.Task[Any]]) -> Any:
    return await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


def _found(
    line: BatchLine, response: dict[str, Any] | None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"id": line.id, "custom_id": line.custom_id, "response": response, "error": error}


def answered_by(packs: Mapping[str, Pack], lines: Sequence[BatchLine]) -> Generator[dict[str, Any]]:
    """The answers of packs to lines; the packs are closed at the end."""
    with closing(Worker(packs)) as worker:
        yield from worker.stream(lines)
