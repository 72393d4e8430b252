"""Takes the pictures in docs/ of views, of the page of `packfuse serve`, and of the documentation.

python dev/screenshots.py          # all; needs Debian's chromium and chromium-driver
python dev/screenshots.py --site   # of the documentation alone, after `make docs`; no models
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from starlette.staticfiles import StaticFiles  # noqa: E402

from packfuse import Answer, Pack  # noqa: E402
from packfuse.server.packs import Served  # noqa: E402
from tests.support.browser import chromium, look  # noqa: E402
from tests.support.serving import running, serving  # noqa: E402

DOCS = ROOT / "docs"
QUESTIONS = (
    "What is the capital of Italy?",
    "Why is the sky blue? Answer in one sentence.",
    "Write a Python function that adds two numbers, without an explanation.",
)
LOOKS = {"light": ("light", 1100, 760), "dark": ("dark", 1100, 760), "narrow": ("light", 420, 760)}
SITE_WIDTH = 1280
"""Of a window in which the documentation shows its navigation; it is folded in a narrower one."""
SECONDS = 300


def chat(pack: Pack) -> list[Answer]:
    """The answers of a chat."""
    messages: list[dict[str, Any]] = []
    answers = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answers.append(pack.generate(messages, max_new_tokens=64, trace=True))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


def picture(browser: webdriver.Chrome, name: str) -> None:
    """Keep what is seen, with the details of a token at which the members disagreed."""
    browser.execute_script(
        "const all = document.querySelectorAll('.token.notable');"
        "all[Math.min(3, all.length - 1)]?.focus({preventScroll: true});"
    )
    shot = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    shot.convert("RGB").quantize(128).save(DOCS / name, optimize=True)


def views(browser: webdriver.Chrome, answers: list[Answer], folder: Path) -> None:
    """The view of the second answer, as a file."""
    answers[1].view(earlier=answers[:1]).save(folder / "view.html")
    for name, size in LOOKS.items():
        look(browser, *size)
        browser.get((folder / "view.html").as_uri())
        picture(browser, f"view-{name}.png")


def page(browser: webdriver.Chrome, pack: Pack) -> None:
    """The page of a server, after the same chat."""
    wait = WebDriverWait(browser, SECONDS)
    with serving(Served.ready(packfuse=pack)) as url:
        for name, size in LOOKS.items():
            look(browser, *size)
            browser.get(url)
            wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, "#model option"))
            for count, question in enumerate(QUESTIONS[:2], start=1):
                browser.find_element(By.ID, "prompt").send_keys(question, Keys.ENTER)
                done = ".assistant[data-done]"
                wait.until(
                    lambda one, count=count, done=done: (
                        len(one.find_elements(By.CSS_SELECTOR, done)) == count
                    )
                )
            picture(browser, f"page-{name}.png")


def site(browser: webdriver.Chrome) -> None:
    """The first page of the documentation."""
    with running(StaticFiles(directory=ROOT / "build" / "site", html=True)) as url:
        for name, (scheme, width, height) in LOOKS.items():
            look(browser, scheme, width if name == "narrow" else SITE_WIDTH, height)
            browser.get(url)
            # The theme remembers the colors that it has shown first.
            browser.execute_script("localStorage.clear()")
            browser.get(url)
            picture(browser, f"site-{name}.png")


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder)) as browser:
        site(browser)
        if "--site" in sys.argv:
            return
        pack = Pack.starter()
        answers = chat(pack)
        answers[1].plot(earlier=answers[:1]).save(DOCS / "answer.png", dpi=90)
        views(browser, answers, Path(folder))
        page(browser, pack)


if __name__ == "__main__":
    main()
