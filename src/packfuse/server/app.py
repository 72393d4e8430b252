"""The HTTP application: OpenAI's chat and text completions, models, health, metrics, the page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from packfuse import __version__
from packfuse.server.access_log import AccessLog
from packfuse.server.answering import Answering
from packfuse.server.limits import Guard, RequestLimits
from packfuse.server.metrics import Metrics
from packfuse.server.packs import Served
from packfuse.server.problems import add_problems
from packfuse.view.document import script, styles

_PAGE: dict[str, tuple[Callable[[], str], str]] = {
    "/": (lambda: _own("page.html"), "text/html"),
    "/page.js": (lambda: _own("page.js"), "text/javascript"),
    "/page.css": (lambda: _own("page.css"), "text/css"),
    "/view.js": (script, "text/javascript"),
    "/view.css": (styles, "text/css"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Limits(RequestLimits):
    """The limits of a server, besides those of `RequestLimits`.

    Attributes:
        max_tokens: Most tokens of an answer in a chat, if the request does not say.
        allow_origins: Web pages of other servers that may use this one.
        log_prompts: Whether the access log has the requests' bodies.
    """

    max_tokens: int = 1024
    allow_origins: Sequence[str] = ()
    log_prompts: bool = False


def _own(name: str) -> str:
    return files("packfuse.server").joinpath("page", name).read_text(encoding="utf-8")


def create_app(served: Served, limits: Limits | None = None) -> FastAPI:
    """The application that answers with these packs.

    Args:
        served: The packs; they are loaded when the application starts, and closed at its end.
        limits: See `Limits`.
    """
    limits = limits or Limits()
    metrics = Metrics(served)

    def watch() -> None:
        for name, pack in served.packs.items():
            metrics.watch(name, pack)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        watch()
        served.start(watch)
        yield
        served.close()

    app = FastAPI(title="packfuse", version=__version__, lifespan=life)
    answering = Answering(served, metrics, limits.max_tokens)
    app.add_api_route("/v1/chat/completions", answering.chat, methods=["POST"])
    app.add_api_route("/v1/completions", answering.completion, methods=["POST"])
    app.add_api_route("/v1/models", answering.models, methods=["GET"])

    @app.get("/health")
    def health() -> JSONResponse:
        status = 200 if served.state == "ready" else 503
        return JSONResponse({"status": served.state, "error": served.error or None}, status)

    @app.get("/metrics")
    def all_metrics() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    def page(request: Request) -> Response:
        read, kind = _PAGE[request.url.path]
        return Response(read(), media_type=kind, headers=_HEADERS)

    for path in _PAGE:
        app.add_api_route(path, page, methods=["GET"], include_in_schema=False)
    add_problems(app)
    # The last one that is added runs first.
    app.add_middleware(Guard, limits=limits)
    if limits.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(AccessLog, metrics=metrics, log_prompts=limits.log_prompts)
    return app
