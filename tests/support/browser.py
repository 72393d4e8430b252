"""A real browser without a window, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = os.environ.get("CHROME_PATH") or next(filter(None, map(shutil.which, _BROWSERS)), None)
"""Chromium or Chrome; the workflows name the one that they install."""
DRIVER = os.environ.get("CHROMEDRIVER_PATH") or shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="Chromium and its driver are not installed"
)
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-sync", "--disable-component-update",
    "--window-size=1100,760",
)  # fmt: skip


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser whose profile is a folder of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER or "")
    found = webdriver.Chrome(options=options, service=service)
    # The page has the focus even if the window, which nobody sees, does not.
    found.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    try:
        yield found
    finally:
        found.quit()


def messages(browser: webdriver.Chrome) -> list[str]:
    """What a page wrote to the console, errors of its content security policy included."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] != "DEBUG"]


def look(browser: webdriver.Chrome, scheme: str, width: int, height: int = 760) -> None:
    """Show pages in a color scheme and a size."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def axe_violations(browser: webdriver.Chrome) -> list[str]:
    """What axe finds on the page: its impact, its rule, and the first place."""
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe is not installed: pip install --no-deps axe-playwright-python")
    script = Path(found.submodule_search_locations[0]) / "axe.min.js"
    browser.execute_script(script.read_text(encoding="utf-8"))
    results: dict[str, Any] = browser.execute_async_script(
        "const done = arguments[0]; axe.run(document).then(done, (error) => done(String(error)));"
    )
    return [
        f"{one['impact']} {one['id']}: {one['nodes'][0]['html']} "
        f"{one['nodes'][0].get('failureSummary', '')}"
        for one in results["violations"]
    ]
