"""One line of JSON for every request; prompts are logged only on request."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import Any

from packfuse.server.limits import App, Message, Receive, Scope, Send
from packfuse.server.metrics import Metrics

log = logging.getLogger("packfuse.access")

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/")
"""Routes that are counted by name; others are counted together."""


class AccessLog:
    """An ASGI middleware that logs and counts requests, and gives each an id."""

    def __init__(self, app: App, *, metrics: Metrics, log_prompts: bool) -> None:
        """Wrap an application.

        Args:
            app: The application.
            metrics: Counts the requests.
            log_prompts: Whether bodies are logged.
        """
        self._app, self._metrics, self._log_prompts = app, metrics, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, request_id = time.monotonic(), 500, uuid.uuid4().hex[:16]
        # The routes add what they know: the model, numbers of tokens.
        facts: dict[str, Any] = scope.setdefault("state", {})
        facts["access"] = {}
        bodies: list[bytes] = []

        async def seen() -> Message:
            message = await receive()
            if self._log_prompts:
                bodies.append(message.get("body", b""))
            return message

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, seen, named)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.count(route, status)
            line = {
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(time.monotonic() - started, 4),
                **facts["access"],
            }
            if self._log_prompts:
                line["body"] = b"".join(bodies).decode(errors="replace")
            log.info("%s", json.dumps(line, ensure_ascii=False))
