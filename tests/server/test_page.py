"""The page in a real browser: a prompt typed, the answer streamed, its tokens colored."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from packfuse.server.app import Limits
from packfuse.tools import Turn
from tests.support.scripted import TEMPLATE
from tests.support.serving import served_pack
from tests.support.small import small_pack

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="Debian's chromium and chromium-driver are not installed",
)
SECONDS = 60


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--no-first-run", "--disable-background-networking", "--disable-sync",
                     "--disable-component-update", "--window-size=1100,760",
                     f"--user-data-dir={tmp_path}"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "")
    found = webdriver.Chrome(options=options, service=service)
    yield found
    found.quit()


def ask(browser: webdriver.Chrome, text: str) -> None:
    browser.find_element(By.ID, "prompt").send_keys(text, Keys.ENTER)


def test_a_chat_with_colored_tokens(browser: webdriver.Chrome) -> None:
    pack = small_pack(template=TEMPLATE, context=2048)
    limits = Limits(max_tokens=12)
    chat = [{"role": "user", "content": "Hello <b>there</b>"}]
    expected = Turn(pack, chat, max_new_tokens=12, trace=True).answer()
    with served_pack(pack, limits) as url:
        browser.get(url)
        wait = WebDriverWait(browser, SECONDS)
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#model option"))
        ask(browser, "Hello <b>there</b>")
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".assistant[data-done]"))
        question = browser.find_element(By.CSS_SELECTOR, ".user")
        assert question.text == "Hello <b>there</b>"
        answer = browser.find_element(By.CSS_SELECTOR, ".assistant")
        assert answer.get_attribute("data-text") == expected.text
        tokens = answer.find_elements(By.CSS_SELECTOR, ".token")
        steps = [step for step in expected.record.trace or () if step.utf8]
        assert len(tokens) == len(steps)
        for token, step in zip(tokens, steps, strict=True):
            own = [n for n, choice in step.member_choices.items() if choice == step.text]
            member = max(own, key=lambda name: step.member_probabilities[name], default=None)
            assert token.get_attribute("data-member") == member
        names = [bar.text for bar in browser.find_elements(By.CSS_SELECTOR, "#weights .name")]
        assert names == pack.names
        browser.execute_script("arguments[0].focus()", tokens[0])
        assert len(browser.find_elements(By.CSS_SELECTOR, "#token tr")) == 3
        ask(browser, "And now?")
        wait.until(
            lambda page: len(page.find_elements(By.CSS_SELECTOR, ".assistant[data-done]")) == 2
        )
        if picture := os.environ.get("PACKFUSE_SCREENSHOT"):
            browser.save_screenshot(picture)
    lines = [line for line in browser.get_log("browser") if line["level"] != "DEBUG"]
    assert [line for line in lines if "favicon" not in line["message"]] == []


def test_the_page_asks_for_the_key_and_shows_errors(browser: webdriver.Chrome) -> None:
    pack = small_pack(template=TEMPLATE, context=512)
    with served_pack(pack, Limits(api_key="k1", max_tokens=3)) as url:
        browser.get(url)
        wait = WebDriverWait(browser, SECONDS)
        ask(browser, "Hello")
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".problem"))
        assert "key is wrong" in browser.find_element(By.CSS_SELECTOR, ".problem").text
        browser.find_element(By.ID, "key").send_keys("k1", Keys.TAB)
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#model option"))
        ask(browser, "Hello")
        wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".assistant[data-done]"))
