"""The documentation as a site: it builds without a warning, and its reference is complete."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from starlette.staticfiles import StaticFiles

from dev import memory
from packfuse import FusionRecord
from packfuse.cli.command import PARTS
from packfuse.weighting.prefix_cache import SHARE
from tests.support.browser import axe_violations, chromium, look, messages, needs_chromium
from tests.support.serving import running
from tests.test_readme import DOCS, ROOT, text_of


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with `--strict`: links and anchors are checked, warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def page(site: Path, name: str) -> str:
    return (site / name / "index.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name(site: Path) -> None:
    pages = "".join(page(site, f"reference/{path.name}") for path in (site / "reference").iterdir())
    listed = (ROOT / "dev" / "api.txt").read_text(encoding="utf-8").splitlines()
    # Fields stand in the tables of their classes; all else has a heading of its own.
    names = [line.partition("(")[0] for line in listed if "(" in line]
    assert len(names) > 200
    assert [name for name in names if f'id="{name}"' not in pages] == []


def test_the_reference_has_the_record_and_the_methods(site: Path) -> None:
    record = page(site, "reference/record")
    assert [
        name for name in FusionRecord.model_fields if f"<code>{name}</code>" not in record
    ] == []
    methods = page(site, "reference/methods")
    for registry in PARTS.values():
        for name, part in registry().parts.items():
            assert f"<code>{name}</code>" in methods
            papers = re.findall(r"\d{4}\.\d{5}", part.source)
            assert [paper for paper in papers if f"arxiv.org/abs/{paper}" not in methods] == []


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r'<(?:script|img|link rel="(?:stylesheet|preconnect|preload)")[^>]+https?://'
    )
    found = [path for path in site.rglob("*.html") if loads.search(path.read_text("utf-8"))]
    assert found == []


def test_code_in_tables_is_as_it_is_written(site: Path) -> None:
    assert "<code>dict[str, float] | None</code>" in page(site, "reference/record")
    assert [path for path in site.rglob("*.html") if r"\|" in path.read_text("utf-8")] == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with running(StaticFiles(directory=site, html=True)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@needs_chromium
def test_the_calculator_computes_what_check_does(address: str, browser: webdriver.Chrome) -> None:
    models = json.loads(memory.DATA.read_text(encoding="utf-8"))
    chosen = [models["Qwen3-1.7B"], models["SmolLM3-3B"]]
    weights = sum(2 * model["parameters"] for model in chosen)
    caches = 4096 * 3 * sum(model["kv_bytes"] for model in chosen)
    browser.get(f"{address}/memory/")
    wait = WebDriverWait(browser, 60)
    wait.until(lambda one: one.find_elements(By.CSS_SELECTOR, ".calculator output"))
    tokens, rows = browser.find_elements(By.CSS_SELECTOR, ".calculator input")
    assert tokens.get_attribute("value") == "4096"
    rows.clear()
    rows.send_keys("3")
    shown = browser.find_element(By.CSS_SELECTOR, ".calculator output").text
    sizes = [float(number) for number in re.findall(r"([\d.]+) GB", shown)]
    parts = [weights, caches, SHARE * weights]
    expected = [one / 1e9 for one in (sum(parts), *parts)]
    assert sizes == pytest.approx(expected, abs=0.006)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["", "memory", "when", "reference/record", "notebooks/tour"])
def test_pages_can_be_read_by_all(
    name: str, scheme: str, address: str, browser: webdriver.Chrome
) -> None:
    look(browser, scheme, 1100)
    browser.get(f"{address}/{name}/")
    browser.execute_script("localStorage.clear()")  # the theme remembers the first colors
    browser.get(f"{address}/{name}/")
    found = axe_violations(browser)
    assert [one for one in found if one.startswith(("serious", "critical"))] == []
    assert messages(browser) == []


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)`.*\|.*\|.*\|$", text_of(DOCS / "troubleshooting.md"), re.M)
    sources = [*(ROOT / "src").rglob("*.py")]
    code = " ".join(re.sub(r'"\s*\n\s*f?"', "", text_of(path)) for path in sources)
    assert len(rows) > 30
    for message in rows:
        parts = [part.strip() for part in message.split("...")]
        assert [part for part in parts if part not in code] == [], message


def test_the_memory_of_models_is_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = json.loads(memory.DATA.read_text(encoding="utf-8"))
    assert written.keys() == memory.MODELS.keys()
    page = memory.PAGE.read_text(encoding="utf-8")
    assert memory.filled(page, written) == page
    few = ("gemma-3-270m-it", "Llama-3.2-1B-Instruct")
    monkeypatch.setattr(memory, "MODELS", {name: memory.MODELS[name] for name in few})
    assert memory.computed() == {name: written[name] for name in few}
