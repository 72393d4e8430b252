"""What all tests share: no model hub, a fair part of the processors, one starter pack."""

from __future__ import annotations

import os

# Before anything imports transformers: tests never ask a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before anything imports torch: workers of pytest-xdist, and what they start, share the processors.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from packfuse import Pack

STARTER = {"starter", "starter_folders", "default_starter", "default_folders"}


@pytest.fixture(scope="session")
def starter_folders() -> dict[str, Path]:
    """The model folders of the small starter pack by name, fetched if they are not there yet."""
    from packfuse.starter import starter_paths

    return starter_paths("small", progress=False)


@pytest.fixture(scope="session")
def starter(starter_folders: dict[str, Path]) -> Pack:
    """The small starter pack with its default settings: its models are in memory once."""
    from packfuse import Pack

    return Pack.starter("small", progress=False)


@pytest.fixture(scope="session")
def default_folders() -> dict[str, Path]:
    """The model folders of the starter pack that people get."""
    from packfuse.starter import starter_paths

    return starter_paths(progress=False)


@pytest.fixture(scope="session")
def default_starter(default_folders: dict[str, Path]) -> Pack:
    """The starter pack that people get."""
    from packfuse import Pack

    return Pack.starter(progress=False)


def pytest_collection_finish() -> None:
    """Leave what imports made out of every garbage collection: a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the starter pack, so that `-m "not starter"` never fetches it."""
    for item in items:
        if STARTER.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.starter)
