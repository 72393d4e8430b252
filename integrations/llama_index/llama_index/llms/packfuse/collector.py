"""Fusion records, collected from the events of LlamaIndex's instrumentation."""

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
        span_id: The span of LlamaIndex's instrumentation that the call ran in.
        kind: "chat" or "completion".
        fusion: Its fusion record, as plain JSON types.
    """

    span_id: str | None
    kind: str
    fusion: dict[str, Any]


class FusionCollector(BaseEventHandler):
    """Collects the record of every call of a pack, in the order in which the calls ended.

    `collect_fusion` collects those of one `with` block. To collect all there are, hand one to
    `get_dispatcher().add_event_handler(...)`.

    Attributes:
        calls: What was collected.
    """

    calls: list[FusionCall] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's own records."""
        return "FusionCollector"

    @property
    def records(self) -> list[dict[str, Any]]:
        """The fusion records, without their calls."""
        return [call.fusion for call in self.calls]

    @property
    def by_span(self) -> dict[str, dict[str, Any]]:
        """The fusion records by the span of their calls."""
        return {call.span_id: call.fusion for call in self.calls if call.span_id}

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Keep the record if the event ends a call of a pack."""
        if not isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            return
        raw = event.response.raw if event.response else None
        if isinstance(raw, dict) and isinstance(raw.get("fusion"), dict):
            kind = "chat" if isinstance(event, LLMChatEndEvent) else "completion"
            self.calls.append(FusionCall(event.span_id, kind, raw["fusion"]))


_active: ContextVar[tuple[FusionCollector, ...]] = ContextVar("fusion_collectors", default=())
_installing = threading.Lock()


class _Forwarder(BaseEventHandler):
    """Hands events to the collectors of the task or thread that they happen in."""

    @classmethod
    def class_name(cls) -> str:
        """The name in LlamaIndex's own records."""
        return "FusionForwarder"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Hand the event on."""
        for collector in _active.get():
            collector.handle(event)


_forwarder = _Forwarder()


@contextmanager
def collect_fusion() -> Iterator[FusionCollector]:
    """Collect the fusion records of the calls made in a `with` block.

    Calls that run at the same time in other tasks or threads are not collected; those in tasks and
    threads that LlamaIndex starts inside the block are. Blocks can be nested.

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
