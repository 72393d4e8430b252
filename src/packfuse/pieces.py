"""How requests are cut and put together into forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from packfuse.member import Read

PADS = 4
"""Padding that a row may get so that it is read beside a longer one.

One token more in a pass takes about a tenth of the time of another pass.
"""


class Piece:
    """What one request reads in one forward pass.

    Attributes:
        request: Whose it is.
        ids: The tokens read.
        kept: After how many of the last of them the request wants log-probabilities.
        wanted: After how many they are worked out: all, where somebody watches.
    """

    def __init__(self, request: Read, start: int, stop: int) -> None:
        """The tokens from `start` to `stop`, both counted from the end: at most 0; may be none."""
        self.request, count = request, len(request.ids)
        self.ids = request.ids[max(0, count + start) : max(0, count + stop)]
        self.kept = min(len(self.ids), max(0, stop + request.keep))
        self.wanted = len(self.ids) if request.visit else self.kept

    def take(self, logps: Tensor, pruned: bool) -> Iterator[Tensor]:
        """Show what was worked out to whoever watches; what is kept of it, if anything."""
        self.request.show(self.request.session.length - len(self.ids), logps)
        if self.kept:
            kept = logps if self.kept == len(logps) else logps[-self.kept :].clone()
            columns = None if pruned else self.request.counted
            yield kept if columns is None else columns.restrict(kept)

    @property
    def positions(self) -> range:
        """How many tokens the session has read at each place wanted; before the pass."""
        end = self.request.session.length + len(self.ids)
        return range(end - self.wanted + 1, end + 1)


def batches(requests: Sequence[Read], pads: int | None) -> Iterator[list[int]]:
    """Which requests to read side by side, each once, in their order.

    Args:
        requests: What is asked for.
        pads: How many tokens fewer than others a row may have; None where the rows of a batch need
            equally many, and have read something, all or none.
    """
    groups: dict[tuple[bool, int], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault((request.visit is not None, id(request.counted)), []).append(row)
    for group in groups.values():
        waiting = sorted(group, key=lambda row: len(requests[row].ids))
        while waiting:
            first = requests[waiting[0]]
            fits = [row for row in waiting if _beside(first, requests[row], pads)]
            waiting = [row for row in waiting if row not in fits]
            yield sorted(fits)


def _beside(one: Read, other: Read, pads: int | None) -> bool:
    if pads is not None:
        return len(other.ids) <= len(one.ids) + pads
    same_start = (one.session.length > 0) == (other.session.length > 0)
    return same_start and len(one.ids) == len(other.ids)


def chunks(count: int, silent: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges to read, each with `size` logits at most; the first `silent` tokens have none."""
    start = 0
    while start < count:
        stop = min(count, max(start, silent) + size)
        yield start, stop
        start = stop
