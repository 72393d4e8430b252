"""The view of an answer in a real browser: its tokens, its keys, its work, its accessibility."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from packfuse import Answer
from tests.support import views
from tests.support.browser import axe_violations, chromium, look, messages, needs_chromium
from tests.support.small import small_pack

pytestmark = needs_chromium
NASTY = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>&lt;<!--"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        found.execute_cdp_cmd("Performance.enable", {})
        yield found


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the scripts and no tokens."""
    file = tmp_path_factory.mktemp("view") / "blank.html"
    views.answer([]).view().save(file)
    return file


def show(browser: webdriver.Chrome, answer: Answer, file: Path, **options: Any) -> None:
    answer.view(**options).save(file)
    browser.get(file.as_uri())


def tokens(browser: webdriver.Chrome) -> list[Any]:
    return browser.find_elements(By.CSS_SELECTOR, "[aria-label^='The answer'] .token")


def details(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.CSS_SELECTOR, ".shown").text


def test_a_real_answer_is_shown_token_by_token(browser: webdriver.Chrome, tmp_path: Path) -> None:
    pack = small_pack(context=2048)
    answer = pack.generate("hello the true: hello 日本", max_new_tokens=30, trace=True)
    show(browser, answer, tmp_path / "answer.html")
    shown = tokens(browser)
    assert "".join(one.get_property("textContent") for one in shown)
    labels = browser.find_elements(By.CSS_SELECTOR, ".legend .member")
    assert [label.text.split()[-1] for label in labels] == pack.names
    weights = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".weight")]
    assert weights == [f"{share:.3f}" for share in answer.record.weights.values()]
    steps = answer.record.trace or []
    browser.execute_script("arguments[0].focus()", shown[0])
    text = details(browser)
    assert f"{steps[0].probability:.3f} under the pack" in text
    assert steps[0].carried_by in text
    pieces = browser.find_elements(By.CSS_SELECTOR, "[aria-label^='The prompt'] .token")
    recorded = answer.record.prompt_trace or []
    assert [one.get_property("textContent") for one in pieces] == [one.text for one in recorded]
    assert browser.find_elements(By.CSS_SELECTOR, "main .chart polyline")
    assert messages(browser) == []


def test_the_file_asks_nothing_of_any_network(browser: webdriver.Chrome, tmp_path: Path) -> None:
    browser.get_log("performance")
    answer = views.answer([b"one", NASTY.encode()], [b"two"], names=(NASTY, "b"))
    show(browser, answer, tmp_path / "answer.html")
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in sent if not url.startswith("file:")] == []
    assert messages(browser) == []


def test_nothing_that_was_written_becomes_markup(browser: webdriver.Chrome, tmp_path: Path) -> None:
    answer = views.answer(
        [NASTY.encode(), b"\xff\xfe", NASTY],
        [NASTY.encode()],
        names=(NASTY, "\ud800"),
        notes=[NASTY],
    )
    show(browser, answer, tmp_path / "answer.html", earlier=[answer])
    assert browser.execute_script("return window.pwned") is None
    assert browser.find_elements(By.CSS_SELECTOR, "img, i, script:not([id]) ~ script") == []
    shown = [one.get_property("textContent") for one in tokens(browser)]
    assert shown[0] == shown[-1] == NASTY
    for one in tokens(browser):
        browser.execute_script("arguments[0].focus()", one)
        assert browser.find_elements(By.CSS_SELECTOR, ".shown img, .shown i") == []
    assert messages(browser) == []


PARTS = st.sampled_from(
    ["a", " b", "\n", "\r\n", "é", "e\u0301", "日本", "👩\u200d🔬", "👋🏽", "🇮🇹🇫🇷", "한",
     "\u1112\u1161\u11ab", "\ufeff", "שלום", "\u202eevil\u202c", "<b>", "&amp;", "\u0000",
     "\U0010ffff", "\ufe0f", "\u200d"]
)  # fmt: skip


@st.composite
def byte_tokens(draw: st.DrawFn) -> list[bytes]:
    """A text, or any bytes, cut at any places."""
    text = b"".join(
        draw(st.lists(st.one_of(PARTS.map(str.encode), st.binary(max_size=3)), max_size=8))
    )
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=12)))
    ends = zip([0, *cuts], [*cuts, len(text)], strict=True)
    return [token for low, high in ends if (token := text[low:high])]


@given(byte_tokens())
@example(["👩".encode(), b"\xe2", b"\x80\x8d", "🔬".encode()])
@example([b"\xf0\x9f\x91\x8b", b"\xf0\x9f", b"\x8f\xbd!"])
@example([b"\xe2\x82", b"A", b"\x80", b"\xff"])
@settings(max_examples=150)
def test_units_are_the_shortest_runs_of_whole_characters(
    browser: webdriver.Chrome, blank: Path, drawn: list[bytes]
) -> None:
    if browser.current_url != blank.as_uri():
        browser.get(blank.as_uri())
    steps = [{"utf8": list(one), "text": "?"} for one in drawn]
    units: list[dict[str, Any]] = browser.execute_script(
        "const units = []; for (const step of arguments[0]) addStep(units, step);"
        "return units.map((unit) => ({ text: unit.text, bytes: unit.bytes }));",
        steps,
    )
    whole = b"".join(drawn)
    assert bytes(byte for unit in units for byte in unit["bytes"]) == whole
    assert "".join(unit["text"] for unit in units) == whole.decode(errors="replace")
    ends = {sum(len(one["bytes"]) for one in units[: at + 1]) for at in range(len(units))}
    assert ends == whole_characters(whole) & {
        sum(map(len, drawn[: i + 1])) for i in range(len(drawn))
    }


def whole_characters(text: bytes) -> set[int]:
    """Offsets at which characters end, as a person sees them; an independent oracle."""
    offsets, at = {}, 0
    letters = []
    while at < len(text):
        size = next(
            (n for n in (4, 3, 2, 1) if is_letter(text[at : at + n]) and at + n <= len(text)), 0
        ) or broken_size(text[at:])
        letters.append(text[at : at + size].decode(errors="replace")[:1])
        at += size
        offsets[len(letters)] = at
    found, count = set(), 0
    for cluster in regex.findall(r"\X", "".join(letters)):
        count += len(cluster)
        found.add(offsets[count])
    return found


def is_letter(part: bytes) -> bool:
    try:
        return len(part.decode()) == 1
    except UnicodeDecodeError:
        return False


def broken_size(text: bytes) -> int:
    """Bytes of a broken character: as many as could still begin one."""
    size = 1
    while size < len(text) and len(text[: size + 1].decode(errors="replace")) == 1:
        size += 1
    return size


def test_the_keyboard_reaches_every_token(browser: webdriver.Chrome, tmp_path: Path) -> None:
    answer = views.answer([f" {n}".encode() for n in range(40)], [b"one", b" two"])
    show(browser, answer, tmp_path / "answer.html")
    shown = tokens(browser)
    assert [one.get_attribute("tabindex") for one in shown] == ["0"] + ["-1"] * 39
    browser.execute_script("document.querySelector('.token').focus()")

    def press(key: str) -> int:
        browser.switch_to.active_element.send_keys(key)
        return shown.index(browser.switch_to.active_element)

    assert [press(Keys.ARROW_RIGHT), press(Keys.END), press(Keys.ARROW_RIGHT)] == [1, 39, 39]
    assert [press(Keys.ARROW_LEFT), press(Keys.HOME), press(Keys.ARROW_LEFT)] == [38, 0, 0]
    steps = answer.record.trace or []
    differ = [at for at, own in enumerate(steps) if len(set(own.member_choices.values())) > 1]
    assert [press(Keys.ARROW_DOWN) for _ in differ] == [at for at in differ if at] + [
        differ[-1]
    ] * (differ[0] == 0)
    assert "The members disagreed; overruled:" in details(browser)
    assert [one.get_attribute("aria-selected") for one in shown].count("true") == 1
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element not in shown


def test_who_was_overruled_is_said(browser: webdriver.Chrome, tmp_path: Path) -> None:
    agreed, other = views.step(b" yes"), views.step(b" yes")
    choices = {"first": " yes", "second": " no", "third": " maybe"}
    other = other.model_copy(update={"member_choices": choices, "carried_by": "first"})
    agreed = agreed.model_copy(update={"member_choices": dict.fromkeys(views.NAMES, " yes")})
    closed = agreed.model_copy(update={"fused": False, "carried_by": "first"})
    answer = views.answer([])
    weights = {"first": 0.7, "second": 0.3, "third": 0.0}
    record = answer.record.model_copy(update={"trace": [agreed, other, closed], "weights": weights})
    show(browser, Answer(" yes yes yes", record, ()), tmp_path / "answer.html")
    said = []
    for one in tokens(browser):
        browser.execute_script("arguments[0].focus()", one)
        said.append(details(browser).replace("\n", " "))
    assert "All members agreed." in said[0]
    assert "disagreed; overruled: 2 second." in said[1]
    assert "3 third no weight" in said[1]
    assert "“ no”" in said[1]
    assert "The gate was closed: 1 first decided alone." in said[2]


def test_accepted_drafts_are_marked(browser: webdriver.Chrome, tmp_path: Path) -> None:
    answer = views.answer([b"one", b" two", b" three"])
    steps = answer.record.trace or []
    steps[1] = steps[1].model_copy(update={"drafted": True})
    show(browser, answer, tmp_path / "answer.html")
    said, borders = [], []
    for one in tokens(browser):
        browser.execute_script("arguments[0].focus()", one)
        said.append("Drafted, and accepted" in details(browser))
        borders.append(one.value_of_css_property("border-top-style"))
    assert said == [False, True, False]
    assert borders == ["none", "dotted", "none"]
    assert "Tokens under a dotted line were drafted." in browser.page_source


def work_of(browser: webdriver.Chrome, code: str, *arguments: Any) -> dict[str, float]:
    """What a script makes the browser do: changes of the document, layouts, and listeners."""
    browser.execute_script(
        "window.observer?.disconnect(); window.changes = 0;"
        "window.observer = new MutationObserver((found) => { window.changes += found.length; });"
        "observer.observe(document, {subtree: true, childList: true, attributes: true,"
        " characterData: true});"
    )
    before = metrics(browser)
    browser.execute_async_script(
        f"const done = arguments[arguments.length - 1]; {code};"
        "requestAnimationFrame(() => requestAnimationFrame(done));",
        *arguments,
    )
    after = metrics(browser)
    names = ("LayoutCount", "JSEventListeners", "Nodes")
    counts = {name: after[name] - before[name] for name in names}
    return {**counts, "changes": browser.execute_script("return window.changes")}


def long_answer(count: int) -> Answer:
    return views.answer([f" {n % 100}".encode() for n in range(count)], [b"a", b"b"])


MOVES = {
    "keys": "document.querySelectorAll('.token')[99].focus({preventScroll: true})",
    "mouse": "document.querySelectorAll('.token')[99].dispatchEvent("
    "new MouseEvent('mouseover', {bubbles: true}))",
}


@pytest.mark.parametrize("move", MOVES)
def test_a_move_costs_the_same_in_a_long_text(
    browser: webdriver.Chrome, tmp_path: Path, move: str
) -> None:
    work, loaded = [], []
    for count in (200, 2000):
        show(browser, long_answer(count), tmp_path / "answer.html")
        assert len(tokens(browser)) == count
        loaded.append(metrics(browser))
        work.append(work_of(browser, MOVES[move]))
    assert 0 < work[0]["changes"] == work[1]["changes"] <= 10
    assert max(one["LayoutCount"] for one in work) <= 3
    assert max(one["Nodes"] for one in work) <= 200
    # Listeners are those of the containers, and no token is laid out by itself.
    assert loaded[0]["JSEventListeners"] == loaded[1]["JSEventListeners"] < 20
    assert loaded[1]["LayoutCount"] <= 3


def test_a_token_that_arrives_costs_the_same_in_a_long_text(
    browser: webdriver.Chrome, blank: Path
) -> None:
    browser.get(blank.as_uri())
    names = ["first", "second"]
    step = views.step(b" x", names=names).model_dump(mode="json")
    browser.execute_script(
        "window.root = document.body.appendChild(document.createElement('div'));"
        "window.arriving = answerTokens(root, new Members(arguments[0]), () => {});",
        names,
    )
    work = []
    for count in (200, 1800):
        browser.execute_script("arriving.add(Array(arguments[0]).fill(arguments[1]))", count, step)
        work.append(work_of(browser, "arriving.add([arguments[0]])", step))
    assert browser.execute_script("return root.children.length") == 2002
    assert 0 < work[0]["changes"] == work[1]["changes"] <= 2
    assert max(one["LayoutCount"] for one in work) <= 3


def metrics(browser: webdriver.Chrome) -> dict[str, float]:
    """Counts of the browser's own work on this page, without what earlier pages left."""
    browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return {one["name"]: one["value"] for one in found}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("light", 400)])
def test_axe_finds_nothing(
    browser: webdriver.Chrome, tmp_path: Path, scheme: str, width: int
) -> None:
    sentence: list[bytes | str] = [
        b"The",
        b" capital",
        b"\n",
        b" ",
        "شكرا".encode(),
        b"<b>",
        "<end>",
    ]
    names = [f"member {n}" for n in range(6)]
    answer = views.answer(sentence * 4, [b"What", b" is", b" it", b"?"], names, notes=["a note"])
    look(browser, scheme, width)
    show(browser, answer, tmp_path / "answer.html", earlier=[answer, answer])
    browser.execute_script("document.querySelectorAll('.token')[1].focus()")
    for folded in browser.find_elements(By.TAG_NAME, "summary"):
        browser.execute_script("arguments[0].click()", folded)
    assert axe_violations(browser) == []
    look(browser, "light", 1100)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_counts_instead_of_the_readers(
    browser: webdriver.Chrome, tmp_path: Path, theme: str
) -> None:
    for scheme in ("light", "dark"):
        look(browser, scheme, 1100)
        show(browser, views.answer([b"a"]), tmp_path / "answer.html", theme=theme)
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (theme == "light")
    look(browser, "light", 1100)


def test_a_notebook_shows_the_file_in_a_frame(browser: webdriver.Chrome, tmp_path: Path) -> None:
    answer = views.answer([b"one", NASTY.encode()])
    (tmp_path / "cell.html").write_text(f"<!doctype html>{answer._repr_html_()}")
    browser.get((tmp_path / "cell.html").as_uri())
    browser.switch_to.frame(0)
    assert [one.get_property("textContent") for one in tokens(browser)] == ["one", NASTY]
    assert browser.execute_script("return window.pwned") is None
    browser.switch_to.default_content()
    assert messages(browser) == []
