"""vLLM's server, `POST /v1/completions` with token ids (0.32 and later)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.models.remote.client import Client
from packfuse.models.remote.protocols.base import Candidates, Protocol, ServerFacts

_PREFIX = "token_id:"
_DEFAULT_CAP = 20


class Vllm(Protocol):
    """vLLM's server. It names at most `--max-logprobs` tokens, and scores a prompt in one request.

    A prompt that is scored is read in full, without the server's prefix cache.
    """

    api = "vllm"
    raise_limit = "Start vLLM with --max-logprobs 256 or more."

    def __init__(self, client: Client, model: str | None) -> None:
        """See `Protocol`."""
        super().__init__(client, model)
        self._cap: int | None = None

    def probe(self) -> bool:
        """See `Protocol.probe`."""
        listed: Any = self.client.get("/v1/models")
        models = listed.get("data") if isinstance(listed, Mapping) else None
        if not models or models[0].get("owned_by") != "vllm":
            return False
        names = [str(own["id"]) for own in models]
        if self.model and self.model not in names:
            raise self.client.error(f"it has {', '.join(names)}, not {self.model!r}")
        own = models[names.index(self.model) if self.model else 0]
        self.model = str(own["id"])
        if self._cap is None:
            self._cap = self._find_cap()
        self.facts = ServerFacts(self.model, None, int(own["max_model_len"]), None, self._cap)
        return True

    def _find_cap(self) -> int:
        """The most tokens that the server names, which it says in refusing more."""
        most = 10**6
        refused = self.client.refusal("/v1/completions", self._body([[0]], most))
        found = re.search(r"max(?:imum)? allowed:? (\d+)", refused)
        return int(found[1]) if found else (_DEFAULT_CAP if refused else most)

    def tokenize(self, text: str) -> list[int] | None:
        """See `Protocol.tokenize`."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return [int(index) for index in self.client.post("/tokenize", body)["tokens"]]

    def read(self, ids: Sequence[int], k: int) -> Candidates:
        """See `Protocol.read`."""
        found = self.client.post("/v1/completions", self._body([list(ids)], k))
        return self._last(found)

    def scores(self, ids: Sequence[int], counts: Sequence[int], k: int) -> list[Candidates] | None:
        """See `Protocol.scores`."""
        body = self._body([list(ids[: counts[-1]])], k) | {"prompt_logprobs": k}
        found = self.client.post("/v1/completions", body)
        places = found["choices"][0]["prompt_logprobs"]
        return [
            self._last(found) if count == counts[-1] else _named(places[count], k)
            for count in counts
        ]

    def _body(self, prompts: list[list[int]], k: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": k,
            "return_tokens_as_token_ids": True,
        }

    def _last(self, found: Mapping[str, Any]) -> Candidates:
        """The candidates after the whole prompt."""
        (top,) = found["choices"][0]["logprobs"]["top_logprobs"]
        ids = [int(name.removeprefix(_PREFIX)) for name in top]
        details = (found.get("usage") or {}).get("prompt_tokens_details") or {}
        return Candidates(
            np.array(ids, dtype=np.int64),
            np.array(list(top.values()), dtype=np.float64),
            details.get("cached_tokens"),
        )


def _named(place: Mapping[str, Mapping[str, Any]], k: int) -> Candidates:
    """The k most probable tokens at a place of the prompt, where the prompt's own is named too."""
    best = sorted(place.items(), key=lambda item: -item[1]["logprob"])[:k]
    return Candidates(
        np.array([int(index) for index, _ in best], dtype=np.int64),
        np.array([entry["logprob"] for _, entry in best], dtype=np.float64),
    )
