"""The page in a real browser: a prompt typed, the answer streamed, its tokens colored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from packfuse.server.app import Limits
from packfuse.tools import Turn
from tests.support.browser import axe_violations, chromium, look, messages, needs_chromium
from tests.support.scripted import TEMPLATE
from tests.support.serving import served_pack
from tests.support.small import small_pack

pytestmark = needs_chromium
SECONDS = 60


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path) as found:
        yield found


def ask(browser: webdriver.Chrome, text: str) -> None:
    browser.find_element(By.ID, "prompt").send_keys(text, Keys.ENTER)


def answered(browser: webdriver.Chrome, count: int) -> list[WebElement]:
    """The answers, when there are so many."""
    done = ".assistant[data-done]"
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, done)) == count)
    return browser.find_elements(By.CSS_SELECTOR, done)


def opened(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    wait = WebDriverWait(browser, SECONDS)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#model option"))


def test_a_chat_with_colored_tokens(browser: webdriver.Chrome) -> None:
    pack = small_pack(template=TEMPLATE, context=2048)
    chat = [{"role": "user", "content": "Hello <b>there</b>"}]
    expected = Turn(pack, chat, max_new_tokens=12, trace=True).answer()
    with served_pack(pack, Limits(max_tokens=12)) as url:
        opened(browser, url)
        ask(browser, "Hello <b>there</b>")
        (answer,) = answered(browser, 1)
        question = browser.find_element(By.CSS_SELECTOR, ".user")
        assert question.text == "Hello <b>there</b>"
        assert answer.get_attribute("data-text") == expected.text
        units: list[list[str]] = browser.execute_script(
            "const units = []; for (const step of arguments[0]) addStep(units, step);"
            "return units.map((unit) => [visible(unit.text), unit.last.carried_by]);",
            [step.model_dump(mode="json") for step in expected.record.trace or ()],
        )
        tokens = answer.find_elements(By.CSS_SELECTOR, ".token")
        shown = [[t.get_property("textContent"), t.get_attribute("data-member")] for t in tokens]
        assert shown == units
        names = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#weights .member")]
        assert names == [f"{number} {name}" for number, name in enumerate(pack.names, start=1)]
        assert browser.find_elements(By.CSS_SELECTOR, "#curves polyline")
        browser.execute_script("arguments[0].focus()", tokens[0])
        assert len(browser.find_elements(By.CSS_SELECTOR, "#token tr")) == 3
        assert browser.find_elements(By.CSS_SELECTOR, "#weights svg") == []
        ask(browser, "And now?")
        answered(browser, 2)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#weights svg circle")) == 4
    assert messages(browser) == []


def test_tokens_that_come_together_are_drawn_together(browser: webdriver.Chrome) -> None:
    pack = small_pack(template=TEMPLATE, context=512)
    with served_pack(pack) as url:
        opened(browser, url)
        changes = browser.execute_async_script(
            "const done = arguments[1]; let changes = 0;"
            "const turn = document.getElementById('chat').appendChild(element('div'));"
            "const arriving = new Arriving(turn);"
            "new MutationObserver(() => { changes += 1; }).observe(turn, {childList: true});"
            "for (let at = 0; at < 2000; at += 1) arriving.add([arguments[0]]);"
            "requestAnimationFrame(() => requestAnimationFrame(() => done("
            "  [changes, turn.children.length])));",
            {"text": " x", "utf8": [32, 120], "probability": 1, "carried_by": "long",
             "member_choices": {"long": " x", "short": " y"}, "fused": True,
             "member_probabilities": {"long": 1, "short": 0}, "alternatives": []},
        )  # fmt: skip
    assert changes == [1, 2000]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 400)])
def test_axe_finds_nothing(browser: webdriver.Chrome, scheme: str, width: int) -> None:
    pack = small_pack(template=TEMPLATE, context=2048)
    with served_pack(pack, Limits(max_tokens=24)) as url:
        look(browser, scheme, width)
        opened(browser, url)
        assert axe_violations(browser) == []
        for count in (1, 2):
            ask(browser, "Hello the true there")
            tokens = answered(browser, count)[-1].find_elements(By.CSS_SELECTOR, ".token")
        browser.execute_script("arguments[0].focus()", tokens[2])
        assert axe_violations(browser) == []


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
        answered(browser, 1)
