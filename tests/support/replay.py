"""A server on this machine that answers as a real one did: recorded exchanges."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def replayed(file: Path) -> Iterator[str]:
    """The address of a server with the exchanges of a file; any other request gets status 500."""
    known = {
        (one["method"], one["path"], json.dumps(one["body"], sort_keys=True)): one
        for one in json.loads(file.read_text(encoding="utf-8"))
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size)) if size else None
            one = known.get((self.command, self.path, json.dumps(body, sort_keys=True)))
            missing = {"error": "no such exchange was recorded", "body": body}
            text = json.dumps(one["answer"] if one else missing).encode()
            self.send_response(one["status"] if one else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer  # noqa: N815 (names of the library)

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
