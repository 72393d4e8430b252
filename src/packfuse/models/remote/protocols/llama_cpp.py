"""llama.cpp's server, `POST /completion` (build 11434 and later)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.models.remote.protocols.base import Candidates, Protocol, ServerFacts

_FIELDS = ["completion_probabilities", "timings"]

_WHOLE_TEXT = "root ::= [ -~]+"
"""A grammar of printable ASCII. A token that ends within a character is held back by the server,
and its probabilities with it; under the grammar another token is chosen, and the probabilities,
which are those before the choice, are the same."""


class LlamaCpp(Protocol):
    """llama.cpp's server. It names as many candidates as asked, and scores one place a request."""

    api = "llama.cpp"

    def probe(self) -> bool:
        """See `Protocol.probe`."""
        props = self.client.get("/props")
        if not isinstance(props, Mapping) or "default_generation_settings" not in props:
            return False
        listed: Any = (self.client.get("/v1/models") or {}).get("data") or [{}]
        meta = listed[0].get("meta") or {}
        self.facts = ServerFacts(
            model=str(listed[0].get("id") or props.get("model_alias") or props.get("model_path")),
            columns=meta.get("n_vocab"),
            context_window=int(props["default_generation_settings"]["n_ctx"]),
            parameters=meta.get("n_params"),
        )
        return True

    def tokenize(self, text: str) -> list[int] | None:
        """See `Protocol.tokenize`."""
        found = self.client.post("/tokenize", {"content": text, "add_special": False})
        return [int(index) for index in found["tokens"]]

    def read(self, ids: Sequence[int], k: int) -> Candidates:
        """See `Protocol.read`. The values are those before temperature and samplers."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": k,
            "temperature": -1,
            "cache_prompt": True,
            "response_fields": _FIELDS,
        }
        found = self.client.post("/completion", body)
        if "completion_probabilities" not in found:
            found = self.client.post("/completion", {**body, "grammar": _WHOLE_TEXT})
        (place,) = found["completion_probabilities"]
        top = place["top_logprobs"]
        return Candidates(
            np.array([entry["id"] for entry in top], dtype=np.int64),
            np.array([entry["logprob"] for entry in top], dtype=np.float64),
            found.get("timings", {}).get("cache_n"),
        )
