"""A server on this machine that answers as a real one did: recorded exchanges."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]
"""A status and a JSON document."""


@contextmanager
def replayed(file: Path) -> Iterator[str]:
    """The address of a server with the exchanges of a file of dev/exchanges.py.

    Any other request gets status 500.
    """
    known = {
        (one["method"], one["path"], json.dumps(one["body"], sort_keys=True)): one
        for one in json.loads(file.read_text(encoding="utf-8"))["exchanges"]
    }

    def answer(method: str, path: str, body: Any) -> Answer:
        one = known.get((method, path, json.dumps(body, sort_keys=True)))
        missing = {"error": "no such exchange was recorded", "body": body}
        return (one["status"], one["answer"]) if one else (500, missing)

    with answering(answer) as url:
        yield url


@contextmanager
def answering(answer: Callable[[str, str, Any], Answer]) -> Iterator[str]:
    """The address of a server that answers requests by their method, path and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            status, found = answer(self.command, self.path, body)
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = reply  # noqa: N815 (names of the library)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
