"""Fusion records on the responses of query engines, which drop what the LLM hands back."""

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
    """Put fusion records into `response.metadata["fusion"]`, and give the response back.

    Args:
        response: What a query engine or a chat engine answered.
        records: Fusion records, or the collector that has them; a streamed response has its record
            when it is read to its end.
    """
    found = records.records if isinstance(records, FusionCollector) else records
    response.metadata = {**(response.metadata or {}), "fusion": list(found)}
    return response
