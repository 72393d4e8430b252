"""vLLM's server, `POST /v1/completions` with token ids (0.32 and later)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.models.remote.client import Client
from packfuse.models.remote.protocols.base import Candidates, ServerFacts
from packfuse.models.remote.protocols.openai_server import OpenAIServer

_PREFIX = "token_id:"
_DEFAULT_CAP = 20


class Vllm(OpenAIServer):
    """vLLM's server. It names at most `--max-logprobs` tokens, and scores a prompt in one request.

    A prompt that is scored is read in full, without the server's prefix cache.
    """

    api = owner = "vllm"
    scores_prompts = True
    raise_limit = "Start vLLM with --max-logprobs 256 or more."

    def __init__(self, client: Client, model: str | None) -> None:
        """See `Protocol`."""
        super().__init__(client, model)
        self._cap: int | None = None

    def probe(self) -> bool:
        """See `Protocol.probe`."""
        own = self._listed()
        if own is None:
            return False
        name = str(own["id"])
        if self._cap is None:
            self._cap = self._find_cap(name)
        self.facts = ServerFacts(name, None, int(own["max_model_len"]), None, self._cap)
        return True

    def _find_cap(self, name: str) -> int:
        """The most tokens that the server names, which it says in refusing more."""
        most = 10**6
        refused = self.client.refusal("/v1/completions", _body(name, [[0]], most))
        found = re.search(r"max(?:imum)? allowed:? (\d+)", refused)
        return int(found[1]) if found else (_DEFAULT_CAP if refused else most)

    def read(self, ids: Sequence[int], k: int) -> Candidates:
        """See `Protocol.read`."""
        found = self.client.post("/v1/completions", _body(self.facts.model, [list(ids)], k))
        return self._last(found)

    def scores(self, ids: Sequence[int], counts: Sequence[int], k: int) -> list[Candidates]:
        """See `Protocol.scores`."""
        body = _body(self.facts.model, [list(ids[: counts[-1]])], k) | {"prompt_logprobs": k}
        found = self.client.post("/v1/completions", body)
        places = found["choices"][0]["prompt_logprobs"]
        return [
            self._last(found) if count == counts[-1] else _named(places[count], k)
            for count in counts
        ]

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


def _body(name: str, prompts: list[list[int]], k: int) -> dict[str, Any]:
    return {
        "model": name,
        "prompt": prompts,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": k,
        "return_tokens_as_token_ids": True,
    }
