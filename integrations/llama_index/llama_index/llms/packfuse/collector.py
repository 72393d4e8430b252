"""Collects fusion records from the events of LlamaIndex's instrumentation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index_instrumentation import get_dispatcher
from pydantic import Field


@dataclass(frozen=True, slots=True)
class FusionCall:
    """One call of a pack.

    Attributes:
        span_id: The span of LlamaIndex's instrumentation in which the call ran.
        kind: "chat" or "completion".
        fusion: The fusion record, as plain JSON types.
    """

    span_id: str | None
    kind: str
    fusion: dict[str, Any]


class FusionCollector(BaseEventHandler):
    """Collects the record of every call of a pack, in the order in which the calls ended.

    `collect_fusion` collects the calls of a `with` block. To collect all calls of a process, pass a
    collector to `get_dispatcher().add_event_handler(...)`.

    Attributes:
        calls: The calls so far.
    """

    calls: list[FusionCall] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in LlamaIndex's data."""
        return "FusionCollector"

    @property
    def records(self) -> list[dict[str, Any]]:
        """The fusion records of the calls."""
        return [call.fusion for call in self.calls]

    @property
    def by_span(self) -> dict[str, dict[str, Any]]:
        """The fusion records by span of the calls."""
        return {call.span_id: call.fusion for call in self.calls if call.span_id}

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Collect the record if the event is the end of a call of a pack."""
        if not isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            return
        raw = event.response.raw if event.response else None
        if isinstance(raw, dict) and isinstance(raw.get("fusion"), dict):
            kind = "chat" if isinstance(event, LLMChatEndEvent) else "completion"
            self.calls.append(FusionCall(event.span_id, kind, raw["fusion"]))


_active: ContextVar[tuple[FusionCollector, ...]] = ContextVar("fusion_collectors", default=())
_installing = threading.Lock()


class _Forwarder(BaseEventHandler):
    """Passes events on to the collectors of the task or thread in which they occur."""

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in LlamaIndex's data."""
        return "FusionForwarder"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Pass the event on."""
        for collector in _active.get():
            collector.handle(event)


_forwarder = _Forwarder()


@contextmanager
def collect_fusion() -> Iterator[FusionCollector]:
    """Collect the fusion records of the calls in a `with` block.

    Calls in tasks and threads that LlamaIndex starts inside the block are collected; calls in other
    tasks and threads are not. Blocks can be nested.

    Example:
        >>> with collect_fusion() as fusion:  # doctest: +SKIP
        ...     response = query_engine.query("Who wrote it?")
        >>> fusion.records[0]["weights"]  # doctest: +SKIP
    """
    root = get_dispatcher()
    with _installing:
        if not any(handler is _forwarder for handler in root.event_handlers):
            root.add_event_handler(_forwarder)
    collector = FusionCollector()
    token = _active.set((*_active.get(), collector))
    try:
        yield collector
    finally:
        _active.reset(token)
