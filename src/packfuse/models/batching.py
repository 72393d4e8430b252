"""How requests are cut and put together into forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from packfuse.models.member import Read

MAX_PADDING = 4
"""Padding that a row may get so that it is read beside a longer one.

One token more in a pass takes about a tenth of the time of another pass.
"""


MAX_CHUNK_TOKENS = 512
"""Most tokens read in one pass, so that what it needs besides logits stays small (dev/log.md)."""


class ReadChunk:
    """What one request reads in one forward pass.

    Attributes:
        request: Whose it is.
        ids: The tokens read.
        kept: After how many of the last of them the request wants log-probabilities.
        places: Which of them log-probabilities are worked out after, for whoever watches, too.
    """

    def __init__(self, request: Read, start: int, stop: int) -> None:
        """The tokens from `start` to `stop`, both counted from the end: at most 0; may be none."""
        self.request, count = request, len(request.ids)
        self.ids = request.ids[max(0, count + start) : max(0, count + stop)]
        self.kept = min(len(self.ids), max(0, stop + request.keep))
        first, tail = request.session.length + 1, len(self.ids) - self.kept
        callback = request.callback
        self.places = [
            at
            for at in range(len(self.ids))
            if at >= tail or (callback and callback.wants(first + at))
        ]
        self._counts = [first + at for at in self.places]
        self._tail = first + tail

    @property
    def wanted(self) -> int:
        """How many rows of log-probabilities are worked out."""
        return len(self.places)

    def take(self, counts: Sequence[int], logps: Tensor, *, pruned: bool) -> Iterator[Tensor]:
        """Show what was worked out to whoever watches; what is kept of it, if anything.

        Args:
            counts: Some of `counts`, one after the other.
            logps: `[n, columns]` after so many tokens.
            pruned: Whether only the columns that count were worked out.
        """
        self.request.notify(counts, logps)
        kept = sum(count >= self._tail for count in counts)
        if kept:
            said = logps if kept == len(logps) else logps[-kept:].clone()
            columns = None if pruned else self.request.active_subset
            yield said if columns is None else columns.restrict(said)

    @property
    def counts(self) -> Sequence[int]:
        """How many tokens the session has read at each place."""
        return self._counts


def batches(requests: Sequence[Read], pads: int | None) -> Iterator[list[int]]:
    """Which requests to read side by side, each once, in their order.

    Args:
        requests: What is asked for.
        pads: How many tokens fewer than others a row may have; None where the rows of a batch need
            equally many, and have read something, all or none.
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
    requests: Sequence[Read], size: int | None, *, chooses: bool
) -> Iterator[tuple[int, int]]:
    """Ranges of tokens to read, counted from the end of the longest request, at most 0.

    Args:
        requests: What is read side by side, aligned at the ends.
        size: Most tokens of a range after which some request wants logits; None for any number.
        chooses: Whether logits that nobody wants need not be made.
    """
    length = max(len(request.ids) for request in requests)
    wanted = set(range(-length, 0)) if not chooses else set[int]()
    for request in requests:
        wanted.update(range(-request.keep, 0))
        if callback := request.callback:
            first, count = request.session.length + 1, len(request.ids)
            wanted.update(at - count for at in range(count) if callback.wants(first + at))
    start, held = -length, 0
    for at in range(-length, 0):
        held += at in wanted
        if held == size or at - start + 1 == MAX_CHUNK_TOKENS or at == -1:
            yield start, at + 1
            start, held = at + 1, 0
