"""Which read requests share a forward pass, and how long reads are cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from packfuse.models.member import Pause, Read

MAX_PADDING = 4
"""Most padding tokens of a row that shares a forward pass with a longer one.

One more token in a pass takes about a tenth of the time of another pass.
"""


MAX_CHUNK_TOKENS = 512
"""Most tokens of a row in one pass, which limits the memory for activations (dev/log.md)."""

MAX_DEVICE_TOKENS = 8192
"""The same on accelerators, where passes over few tokens leave the device idle, and only the first
pass has the fast kernels of attention without a mask."""


def max_chunk_tokens(device: torch.device) -> int:
    """Most tokens of a row in one pass on a device."""
    return MAX_CHUNK_TOKENS if device.type == "cpu" else MAX_DEVICE_TOKENS


NO_PAUSE = Pause(MAX_DEVICE_TOKENS, int)
"""For a read that nothing waits for: its pauses do nothing."""


class ReadChunk:
    """The part of one request that one forward pass reads.

    Attributes:
        request: The request.
        ids: The token ids of the chunk.
        kept: For how many of the last of these tokens log-probabilities are returned.
        positions: Indices into `ids` after which logits are computed, for the result or for the
            request's callback.
    """

    def __init__(self, request: Read, start: int, stop: int) -> None:
        """The tokens `start:stop` of a request; may be none.

        Args:
            request: The request.
            start: First token, counted from the end of the request's ids: at most 0.
            stop: End of the range, counted in the same way.
        """
        self.request, count = request, len(request.ids)
        self.ids = request.ids[max(0, count + start) : max(0, count + stop)]
        self.kept = min(len(self.ids), max(0, stop + request.keep))
        first, tail = request.session.length + 1, len(self.ids) - self.kept
        callback = request.callback
        self.positions = [
            index
            for index in range(len(self.ids))
            if index >= tail or (callback and callback.wants(first + index))
        ]
        self._counts = [first + index for index in self.positions]
        self._first_kept = first + tail

    @property
    def counts(self) -> Sequence[int]:
        """For each of `positions`, how many tokens the session has read up to and with it."""
        return self._counts

    def deliver(self, counts: Sequence[int], logps: Tensor, *, pruned: bool) -> Iterator[Tensor]:
        """Call the request's callback with a block, and yield what the request returns of it.

        Args:
            counts: The next of `counts`.
            logps: `[n, columns]`, log-probabilities (nats) at these counts.
            pruned: Whether `logps` is already restricted to the request's subset.
        """
        self.request.notify(counts, logps)
        kept = sum(count >= self._first_kept for count in counts)
        if kept:
            returned = logps if kept == len(logps) else logps[-kept:].clone()
            subset = None if pruned else self.request.active_subset
            yield returned if subset is None else subset.restrict(returned)


def batches(requests: Sequence[Read], pads: int | None) -> Iterator[list[int]]:
    """Group requests into batches: lists of indices, each index in exactly one list.

    Args:
        requests: The requests.
        pads: Most padding tokens of a row. None where rows cannot be padded: then the rows of a
            batch have equally many new tokens, and either all or none of them have read before.
    """
    groups: dict[tuple[bool, int], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault((request.callback is not None, id(request.active_subset)), []).append(row)
    for group in groups.values():
        waiting = sorted(group, key=lambda row: len(requests[row].ids))
        while waiting:
            first = requests[waiting[0]]
            fits = [row for row in waiting if _can_share_batch(first, requests[row], pads)]
            waiting = [row for row in waiting if row not in fits]
            yield sorted(fits)


def _can_share_batch(one: Read, other: Read, pads: int | None) -> bool:
    if pads is not None:
        return len(other.ids) <= len(one.ids) + pads
    same_start = (one.session.length > 0) == (other.session.length > 0)
    return same_start and len(one.ids) == len(other.ids)


def chunks(
    requests: Sequence[Read],
    size: int | None,
    *,
    skips_logits: bool,
    longest: int = MAX_CHUNK_TOKENS,
) -> Iterator[tuple[int, int]]:
    """Token ranges `(start, stop)` of the chunks, counted from the end of the longest request.

    Args:
        requests: The requests of one batch, aligned at their ends.
        size: Most positions of a chunk at which some request needs logits; None for no limit.
        skips_logits: Whether logits are computed only at positions where a request needs them.
        longest: Most tokens of a chunk, where no pause of a request asks for fewer.
    """
    length = max(len(request.ids) for request in requests)
    longest = min([longest, *(r.pause.tokens for r in requests if r.pause)])
    needed = set(range(-length, 0)) if not skips_logits else set[int]()
    for request in requests:
        needed.update(range(-request.keep, 0))
        if callback := request.callback:
            first, count = request.session.length + 1, len(request.ids)
            needed.update(index - count for index in range(count) if callback.wants(first + index))
    start, logits = -length, 0
    for index in range(-length, 0):
        logits += index in needed
        if logits == size or index - start + 1 == longest or index == -1:
            yield start, index + 1
            start, logits = index + 1, 0
