"""Sends requests that begin alike to the same replica, whose prefix cache has their beginning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

BEGINNING = 512
"""Characters of a prompt that decide where it is sent."""

_SLACK = 1.25
"""How many times its share of the running requests a replica may have before others are taken."""


def routing_key(body: bytes) -> str:
    """The beginning of the prompt in a request's body; "" if it has none."""
    try:
        data = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        return ""
    if not isinstance(data, dict):
        return ""
    messages = data.get("messages")
    prompt = data.get("prompt", "") if messages is None else messages
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return f"{data.get('model')}\n{text[:BEGINNING]}" if text else ""


def ranked(key: str, loads: Mapping[str, int]) -> list[str]:
    """Replicas in the order in which they are tried.

    Each key has an order of its own (rendezvous hashing), so that few keys move when replicas come
    or go. A replica with far more than its share of requests comes after the others: consistent
    hashing with bounded loads, Mirrokni et al. 2018.

    Args:
        key: What decides the order.
        loads: Number of requests by replica.
    """
    order = sorted(loads, key=lambda name: xxhash.xxh64_intdigest(_bytes(f"{name}\n{key}")))
    most = math.ceil(_SLACK * (sum(loads.values()) + 1) / max(1, len(loads)))
    free = [name for name in order if loads[name] < most]
    return [*free, *(name for name in order if loads[name] >= most)]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON may have half a character


class PrefixRouter(RequestRouter):
    """A router of Ray Serve; the first argument of a request is its `routing_key`."""

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One replica a rank, in the order of `ranked`; for no prompt, all in one rank."""
        arguments: Sequence[Any] = pending_request.args if pending_request else ()
        if not arguments or not arguments[0]:
            return [list(candidate_replicas)]
        named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        cache = self.replica_queue_len_cache
        loads = {name: cache.get(own.replica_id) or 0 for name, own in named.items()}
        return [[named[name]] for name in ranked(arguments[0], loads)]
