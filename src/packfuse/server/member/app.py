"""The HTTP application of `packfuse member`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Route

from packfuse import __version__
from packfuse.models.member import Member
from packfuse.models.remote.peer.wire import CARD, CONTENT_TYPE, DIGEST, READ, TOKENIZER, TOKENS
from packfuse.server.limits import Guard, RequestLimits, json_body
from packfuse.server.member.host import Host
from packfuse.server.member.stream import ReadStream
from packfuse.server.problems import RequestError, add_problems


@dataclass(frozen=True, slots=True)
class MemberLimits(RequestLimits):
    """The limits of a member's server, besides those of `RequestLimits`.

    Attributes:
        lease: Time after which a client that sends nothing loses its sessions, in seconds.
        max_cache: Most bytes of the clients' KV caches.
    """

    lease: float = 600.0
    max_cache: int = 2**30


def create_member_app(member: Member, limits: MemberLimits | None = None) -> FastAPI:
    """The application that serves a member.

    Args:
        member: The member, which nothing else may use from now on.
        limits: See `MemberLimits`.
    """
    limits = limits or MemberLimits()
    host = Host(member, limits.lease, limits.max_cache)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        host.worker.start()
        yield
        await asyncio.to_thread(host.worker.close)

    app = FastAPI(title="packfuse member", version=__version__, lifespan=life)

    @app.get(CARD)
    async def card() -> JSONResponse:
        found = await asyncio.wrap_future(host.card())
        return JSONResponse(found.model_dump(mode="json"))

    @app.get(DIGEST)
    async def digest() -> dict[str, str]:
        return {"digest": await asyncio.wrap_future(host.digest())}

    @app.get(TOKENIZER)
    def tokenizer() -> dict[str, str]:
        return host.tokenizer_files()

    @app.post(TOKENS)
    async def tokens(request: Request) -> dict[str, Any]:
        body = json_body(await request.body(), request.headers.get("content-type", ""))
        text = body.get("text")
        if not isinstance(text, str):
            raise RequestError(400, "text: give a text", "text")
        return {"tokens": await asyncio.to_thread(member.vocabulary.encode, text)}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    app.router.routes.append(Route(READ, ReadStream(host, CONTENT_TYPE), methods=["POST"]))
    add_problems(app)
    app.add_middleware(Guard, limits=limits)
    return app
