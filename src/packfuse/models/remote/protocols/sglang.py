"""SGLang's server, `POST /generate` with token ids (0.5 and later)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packfuse.models.remote.protocols.base import Candidates, ServerFacts
from packfuse.models.remote.protocols.openai_server import OpenAIServer

_NO_PROMPT = -1
"""Value of `logprob_start_len` that asks for no place of the prompt."""


class Sglang(OpenAIServer):
    """SGLang's server. It names as many candidates as asked, at several places in one request.

    The tokens before the first of these places come from the server's prefix cache.
    """

    api = owner = "sglang"
    scores_prompts = True

    def probe(self) -> bool:
        """See `Protocol.probe`."""
        own = self._listed()
        if own is None:
            return False
        if own.get("parent"):
            raise self.client.error(f"{own['id']!r} is an adapter", "name the model under it")
        self.facts = ServerFacts(str(own["id"]), None, int(own["max_model_len"]))
        return True

    def read(self, ids: Sequence[int], k: int) -> Candidates:
        """See `Protocol.read`."""
        return _last(self._generate(ids, k, _NO_PROMPT))

    def scores(self, ids: Sequence[int], counts: Sequence[int], k: int) -> list[Candidates]:
        """See `Protocol.scores`."""
        start, end = counts[0] - 1, counts[-1]
        found = self._generate(ids[:end], k, start)
        # The first entry stands for token number `start`, and is null.
        places = found["input_top_logprobs"]
        return [_named(places[count - start]) for count in counts[:-1]] + [_last(found)]

    def _generate(self, ids: Sequence[int], k: int, start: int) -> Mapping[str, Any]:
        """What the server says of a sequence, with the places after its first `start` tokens."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "top_logprobs_num": k,
            "logprob_start_len": start,
        }
        found: Mapping[str, Any] = self.client.post("/generate", body)["meta_info"]
        return found


def _last(found: Mapping[str, Any]) -> Candidates:
    """The candidates after the whole prompt."""
    return _named(found["output_top_logprobs"][0], found.get("cached_tokens"))


def _named(place: Sequence[Sequence[Any]], cached: int | None = None) -> Candidates:
    """The candidates at a place: log-probability, token id, and the text, which is not asked for.

    JSON has no infinity, so an impossible token has null.
    """
    logps = [-math.inf if entry[0] is None else entry[0] for entry in place]
    return Candidates(
        np.array([entry[1] for entry in place], dtype=np.int64),
        np.array(logps, dtype=np.float64),
        cached,
    )
