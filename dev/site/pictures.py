"""Takes the pictures of the site in docs/: light, dark and narrow.

python dev/site/pictures.py       # after `make docs`; needs Debian's chromium and chromium-driver
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from repository import ROOT

sys.path.insert(0, str(ROOT))

from tests.support.browser import chromium, look

LOOKS = {"light": ("light", 1100, 760), "dark": ("dark", 1100, 760), "narrow": ("light", 420, 760)}


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that writes no lines."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (as in the base class)
        """Write nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder of files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def main() -> None:
    """Take all pictures."""
    site = ROOT / "build" / "site"
    with tempfile.TemporaryDirectory() as folder, served(site) as url:
        for name, size in LOOKS.items():
            # A profile of its own: the theme remembers the first colors that it has shown.
            with chromium(Path(folder, name)) as browser:
                look(browser, *size)
                browser.get(url)
                browser.save_screenshot(str(ROOT / "docs" / f"site-{name}.png"))


if __name__ == "__main__":
    main()
