"""Callback that collects the fusion records of all calls in a chain or an agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.tracers.context import register_configure_hook


class FusionCallbackHandler(BaseCallbackHandler):
    """Collects the fusion record of every answer, in the order in which the answers ended.

    Attributes:
        records: The fusion records, as plain JSON types.
    """

    def __init__(self) -> None:
        """Start without records."""
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        """The number of records."""
        return f"FusionCallbackHandler({len(self.records)} records)"

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Collect the records of an answer."""
        for generations in response.generations:
            for generation in generations:
                info = generation.generation_info or {}
                if isinstance(generation, ChatGeneration):
                    info = generation.message.response_metadata
                if "fusion" in info:
                    self.records.append(info["fusion"])


_collector: ContextVar[FusionCallbackHandler | None] = ContextVar("fusion_callback", default=None)
register_configure_hook(_collector, inheritable=True)


@contextmanager
def get_fusion_callback() -> Iterator[FusionCallbackHandler]:
    """Collect the fusion records of every call made inside the block.

    Example:
        >>> with get_fusion_callback() as fusion:
        ...     pass  # agent.invoke(...)
        >>> fusion.records
        []
    """
    handler = FusionCallbackHandler()
    token = _collector.set(handler)
    try:
        yield handler
    finally:
        _collector.reset(token)
