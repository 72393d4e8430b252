"""Fixtures: tiny packs over real tokenizers, and LlamaIndex's global state."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING

import llama_index_instrumentation
import pytest
from llama_index.core import Settings
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.llms.packfuse import PackFuse
from pydantic import Field

from packfuse import Pack
from packfuse.models.hf_member import HFMember
from tests.support import packs, pico

if TYPE_CHECKING:
    from collections.abc import Iterator


def make_pack(**settings) -> Pack:
    """A pack of two tiny random models of different tokenizers, with room for tools."""
    members = [
        HFMember(name, pico.tiny_pair(name, seed=seed, context=4096)[0], packs.vocabulary(name))
        for seed, name in enumerate(("deepseek", "mistral"))
    ]
    return packs.tiny_pack(members, **settings)


@pytest.fixture(scope="session")
def pack() -> Pack:
    """A tiny pack, without a prefix cache: a repeated call has the same record."""
    return make_pack(prefix_cache=0)


@pytest.fixture
def llm(pack: Pack) -> PackFuse:
    """The LLM over it, with short answers."""
    return PackFuse(pack=pack, max_new_tokens=8)


class Events(BaseEventHandler):
    """Keeps every event."""

    kept: list[BaseEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **_) -> None:
        """Keep the event."""
        self.kept.append(event)

    def names(self, part: str = "LLM") -> list[str]:
        """Class names of the events that are about `part`."""
        return [event.class_name() for event in self.kept if part in event.class_name()]


@pytest.fixture
def events() -> Iterator[Events]:
    """All events of LlamaIndex's instrumentation during the test."""
    root, handler = llama_index_instrumentation.get_dispatcher(), Events()
    before = list(root.event_handlers)
    root.add_event_handler(handler)
    yield handler
    root.event_handlers = before


@pytest.fixture
def settings(llm: PackFuse) -> Iterator[type[Settings]]:
    """LlamaIndex's global settings with the tiny pack, reset afterwards."""
    kept = {name: getattr(Settings, name) for name in ("_llm", "_embed_model", "_tokenizer")}
    import llama_index.core

    tokenizer = llama_index.core.global_tokenizer
    Settings.llm, Settings.tokenizer = llm, llm.tokenize
    yield Settings
    for name, value in kept.items():
        setattr(Settings, name, value)
    llama_index.core.global_tokenizer = tokenizer


@pytest.fixture
def swept() -> Iterator[None]:
    """Collects garbage while the test's filters are active: LlamaIndex leaves files open."""
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def no_loop_unasked() -> None:
    """Runs an event loop once. Otherwise LlamaIndex creates one, and never closes it."""
    asyncio.run(asyncio.sleep(0))


# LlamaIndex imports LangChain if it is installed, with a warning of LangChain.
SUNSET = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore that warning in every test here."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(SUNSET)
