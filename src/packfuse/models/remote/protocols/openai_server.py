"""What servers with OpenAI's list of models have in common: vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packfuse.models.remote.protocols.base import Protocol


class OpenAIServer(Protocol):
    """A server that lists its models at `/v1/models`, and tokenizes at `/tokenize`.

    Attributes:
        owner: What the list calls the owner of its models.
    """

    owner: str

    def _listed(self) -> Mapping[str, Any] | None:
        """The entry of the model that the settings name, or else the first one.

        None if the server is not of this kind.
        """
        found: Any = self.client.get("/v1/models")
        models = found.get("data") if isinstance(found, Mapping) else None
        if not models or models[0].get("owned_by") != self.owner:
            return None
        named = (own for own in models if own["id"] == self.model)
        entry: Mapping[str, Any] = next(named, models[0])
        return entry

    def tokenize(self, text: str) -> list[int] | None:
        """See `Protocol.tokenize`."""
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": False}
        return [int(index) for index in self.client.post("/tokenize", body)["tokens"]]
