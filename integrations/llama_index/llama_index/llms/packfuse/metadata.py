"""Adds fusion records to the responses of query engines, which drop the LLM's `raw`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from llama_index.llms.packfuse.collector import FusionCollector


class HasMetadata(Protocol):
    """A `Response`, streaming or not, or the response of a chat engine."""

    metadata: dict[str, Any] | None


Answered = TypeVar("Answered", bound=HasMetadata)


def attach_fusion(
    response: Answered, records: FusionCollector | Sequence[dict[str, Any]]
) -> Answered:
    """Put fusion records into `response.metadata["fusion"]`, and return the response.

    Args:
        response: The response of a query engine or a chat engine.
        records: Fusion records, or their collector. The record of a streamed response exists after
            the last item of the stream.
    """
    found = records.records if isinstance(records, FusionCollector) else records
    response.metadata = {**(response.metadata or {}), "fusion": list(found)}
    return response
