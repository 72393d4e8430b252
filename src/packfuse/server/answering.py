"""The routes that answer: chat completions, text completions, and the list of models."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from packfuse.pack import Pack
from packfuse.server.limits import json_body
from packfuse.server.metrics import Metrics
from packfuse.server.packs import Served
from packfuse.server.problems import problem_of
from packfuse.server.replies import usage_of
from packfuse.server.requests import TEXT_TOKENS, ApiRequest, ChatRequest, TextRequest
from packfuse.server.streams import ReplyStream
from packfuse.tools.awaiting import Pending, PendingStream
from packfuse.tools.reply import Reply

_LEFT = 499
"""Status in the access log for a client that left before its answer."""


class Answering:
    """Answers requests with packs."""

    def __init__(self, served: Served, metrics: Metrics, max_tokens: int) -> None:
        """Answer with `served`; a chat has at most `max_tokens` tokens unless it says otherwise."""
        self._served, self._metrics, self._max_tokens = served, metrics, max_tokens

    async def models(self) -> JSONResponse:
        """The packs by name."""
        packs = self._served.packs if self._served.state == "ready" else {}
        data = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "packfuse",
                "members": pack.names,
                "context_window": pack.context_window,
            }
            for name, pack in packs.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        """See OpenAI's API."""
        return await self._answer(request, ChatRequest, self._max_tokens)

    async def completion(self, request: Request) -> Response:
        """See OpenAI's API."""
        return await self._answer(request, TextRequest, TEXT_TOKENS)

    async def _answer(self, request: Request, kind: type[ApiRequest], max_tokens: int) -> Response:
        body, name, pack = await self._opened(request)
        with _problems(body):
            asked = await run_in_threadpool(kind, pack, name, body, max_tokens)
            if asked.fields.stream:
                return await self._stream(request, asked, body)
            replies = await self._replies(request, name, asked)
            if replies is None:
                return Response(status_code=_LEFT)
            return JSONResponse(asked.response(replies))

    async def _opened(self, request: Request) -> tuple[dict[str, Any], str, Pack]:
        body = json_body(await request.body(), request.headers.get("content-type", ""))
        name, pack = self._served.pack(body.get("model"))
        request.state.access["model"] = name
        return body, name, pack

    async def _replies(self, request: Request, model: str, asked: ApiRequest) -> list[Reply] | None:
        """The answers; None if the client left, which ends them within one step."""
        pending = Pending.submit(asked.calls)
        answers = asyncio.ensure_future(pending.replies())
        left = asyncio.ensure_future(_left(request))
        try:
            await asyncio.wait([answers, left], return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                request.state.access["left"] = True
                return None
            replies = answers.result()
        finally:
            pending.cancel.set()
            for one in (answers, left):
                one.cancel()
                with contextlib.suppress(BaseException):
                    await one
        for task in pending.tasks:
            if task.first_token is not None:
                self._metrics.first_token(model, task.submitted, task.first_token)
        self._note(request, model, replies, asked.each)
        return replies

    async def _stream(
        self, request: Request, asked: ApiRequest, body: Mapping[str, Any]
    ) -> Response:
        """A stream of events. Errors before the first token have a status of their own."""
        model, calls, each = request.state.access["model"], asked.calls, asked.each
        maker = ReplyStream(asked.stream_kind, asked.heading, asked.fields, len(calls) * each)
        pending = PendingStream(calls)
        deltas = pending.deltas()
        left = asyncio.ensure_future(_left(request))
        left.add_done_callback(lambda _: pending.cancel())
        try:
            first = await anext(deltas)
        except BaseException:
            left.cancel()
            raise
        self._metrics.first_token(model, pending.tasks[0].submitted)

        async def events() -> AsyncGenerator[str, None]:
            try:
                for chunk in maker.first():
                    yield _event(chunk)
                for chunk in maker.chunks(*first):
                    yield _event(chunk)
                async for index, delta in deltas:
                    for chunk in maker.chunks(index, delta):
                        yield _event(chunk)
                self._note(request, model, maker.replies, each)
                for chunk in maker.last(each):
                    yield _event(chunk)
                yield "data: [DONE]\n\n"
            except Exception as error:
                yield _event(problem_of(error, body).body)
            finally:
                left.cancel()
                await deltas.aclose()

        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    def _note(self, request: Request, model: str, replies: Sequence[Reply], each: int) -> None:
        """Measure and log answers, of which each prompt has `each`."""
        self._metrics.answered(model, replies, each)
        usage = usage_of(replies, each)
        request.state.access.update(
            prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]
        )


@contextlib.contextmanager
def _problems(body: Mapping[str, Any]) -> Iterator[None]:
    """A context in which errors of a call become errors of the request, which name the field."""
    try:
        yield
    except Exception as error:
        raise problem_of(error, body) from error


async def _left(request: Request) -> None:
    """Wait until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
