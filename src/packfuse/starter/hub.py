"""Pairs of models on the hub that suit one another: two families, of one size and similar skill."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class HubPair(BaseModel):
    """Two models on the hub.

    Attributes:
        size: Size of each, in words.
        models: Their names on the hub.
        parameters: Number of parameters of each, in billions, as published.
    """

    model_config = ConfigDict(frozen=True)

    size: str
    models: tuple[str, str]
    parameters: tuple[float, float]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights of both in bfloat16; KV caches come on top."""
        return round(sum(self.parameters) * 2e9)

    @property
    def command(self) -> str:
        """The command that chats with them."""
        return " ".join(["packfuse chat", *(f"--model {name}" for name in self.models)])


HUB_PAIRS = (
    HubPair(
        size="1B",
        models=("HuggingFaceTB/SmolLM2-1.7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"),
        parameters=(1.71, 1.54),
    ),
    HubPair(
        size="3B",
        models=("HuggingFaceTB/SmolLM3-3B", "Qwen/Qwen2.5-3B-Instruct"),
        parameters=(3.08, 3.09),
    ),
    HubPair(
        size="8B",
        models=("ibm-granite/granite-3.3-8b-instruct", "Qwen/Qwen3-8B"),
        parameters=(8.17, 8.19),
    ),
)
"""From small to large. They are chosen by published results and are not measured as packs."""
