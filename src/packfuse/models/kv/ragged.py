"""Passes in which several rows read more, side by side."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer

from packfuse.hf_compat import is_dummy
from packfuse.models.kv.recurrent import split_rows, stack_rows, with_class
from packfuse.models.kv.store import KVStore, RowCache, has_states

MAX_IDLE_SHARE = 0.25
"""Share of a store's rows that may rest in a pass over it; with more, those that read leave it."""


class ForwardBatch(ABC):
    """Rows that are reading new tokens side by side.

    Attributes:
        rows: By past, which row of the batch it is.
        size: Rows of the batch.
        width: The most new tokens of a row.
        cache: What the model reads from and writes to.
    """

    rows: list[int]
    size: int
    width: int
    cache: DynamicCache

    @abstractmethod
    def places(self, which: int, places: Sequence[int]) -> list[int]:
        """Where the places among a past's new tokens are in the batch, row after row."""

    @abstractmethod
    def inputs(
        self, ids: Sequence[Sequence[int]], device: torch.device, *, positions: bool
    ) -> dict[str, Any]:
        """What the model is called with, besides `cache`, to read the new `ids` of each past.

        Args:
            ids: By past.
            device: Where the model takes them.
            positions: Whether it takes positions.
        """

    @abstractmethod
    def finish(self) -> None:
        """The rows have read their new tokens."""


class RaggedBatch(ForwardBatch):
    """Rows that read new tokens side by side, aligned at their ends.

    Where the rows have a store to themselves they stay there, and of those whose ends do not meet
    as few as possible are moved. Rows of the store that read nothing go along as padding. Rows with
    fewer new tokens have padding before them, whose keys and values are dropped.

    Attributes:
        starts: By row, its first slot; what is before it has to be masked.
        slots: How many slots there are when the new tokens have been read.
    """

    def __init__(
        self, empty: DynamicCache, row_caches: Sequence[RowCache], new: Sequence[int], room: int = 0
    ) -> None:
        """Plan to read `new` tokens in each row; with states, equally many.

        As many as `room` are known to follow: they will find their place without a copy.
        """
        self.row_caches, self._new, self._empty_cache = list(row_caches), list(new), empty
        self.width = max(new)
        totals = [
            row_cache.length + count for row_cache, count in zip(row_caches, new, strict=True)
        ]
        staying = _find_in_place(row_caches, new, idle=not has_states(empty))
        self._in_place = staying is not None
        if staying is not None:
            store, end = staying
            self.rows, self.size, self.slots = [p.row for p in row_caches], store.rows, end
            others = [
                row_cache.end for row_cache in store.row_caches if row_cache not in self.row_caches
            ]
            # Claimed at once: a fork that stands here, too, will have to copy.
            self._store, store.used = store, max([end, *others])
        else:
            self.rows, self.size, self.slots = (
                list(range(len(row_caches))),
                len(row_caches),
                max(totals),
            )
            self._store = KVStore(self.size, self.slots, len(empty.layers), room)
        self.starts = [self.base] * self.size
        for row, total in zip(self.rows, totals, strict=True):
            self.starts[row] = self.slots - total
        self.cache = copy.copy(empty)
        self.cache.layers = [self._layer(index) for index in range(len(empty.layers))]

    @property
    def base(self) -> int:
        """Slots before the first new one."""
        return self.slots - self.width

    def places(self, which: int, places: Sequence[int]) -> list[int]:
        """See `ForwardBatch`."""
        before = (self.rows[which] + 1) * self.width - self._new[which]
        return [before + place for place in places]

    def inputs(
        self, ids: Sequence[Sequence[int]], device: torch.device, *, positions: bool
    ) -> dict[str, Any]:
        """See `ForwardBatch`."""
        padded = [[0] * self.width for _ in range(self.size)]
        for row, new in zip(self.rows, ids, strict=True):
            padded[row][self.width - len(new) :] = new
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(padded, device=device),
            "use_cache": True,
        }
        starts = torch.tensor(self.starts, device=device)[:, None]
        slots = torch.arange(self.slots, device=device)
        if any(self.starts):
            inputs["attention_mask"] = (slots >= starts).long()
        if positions:
            inputs["position_ids"] = (slots[self.base :] - starts).clamp(min=0)
        return inputs

    def _layer(self, index: int) -> Any:
        held = [row_cache.states[index] for row_cache in self.row_caches]
        if is_dummy(self._empty_cache.layers[index]):
            return self._empty_cache.layers[index]
        if held[0] is None:
            layer = with_class(_AttentionLayer, self._empty_cache.layers[index])
        elif isinstance(held[0], DynamicLayer):
            layer = with_class(_HybridLayer, stack_rows(held))
        else:
            return stack_rows(held)
        layer.running, layer.index = self, index
        return layer

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer `[B, heads, slots, width]`, the new ones at the end."""
        store, fresh = self._store, (keys, values)
        if self._in_place:
            for which, new in enumerate(fresh):
                self._write(store.layer(index)[which], new)
        else:
            store.layers[index] = self._gather(index, 0, keys), self._gather(index, 1, values)
        whole, theirs = (held.narrow(-2, 0, self.slots) for held in store.layer(index))
        return whole, theirs

    def _write(self, held: Tensor, fresh: Tensor) -> None:
        """Put new keys or values where the rows are, which may have to make room."""
        # What nobody has written might be NaN, which no mask keeps out.
        for row_cache, row in zip(self.row_caches, self.rows, strict=True):
            start, end = self.starts[row], row_cache.end
            if row_cache.start != start:
                old = held[row, :, row_cache.start : end].clone()
                held[row, :, start : start + row_cache.length] = old
                held[row, :, end:start] = 0
        if len(self.rows) == self.size and set(self._new) == {self.width}:
            held[:, :, self.base : self.slots] = fresh
            return
        for row, count in zip(self.rows, self._new, strict=True):
            held[row, :, self.slots - count : self.slots] = fresh[row, :, self.width - count :]
        ends = {row_cache.row: row_cache.end for row_cache in self._store.row_caches}
        for row in set(range(self.size)) - set(self.rows):
            held[row, :, max(self.base, ends.get(row, 0)) : self.slots] = 0

    def _gather(self, index: int, which: int, fresh: Tensor) -> Tensor:
        """Keys (0) or values (1) of the rows, copied to a new store."""
        rows, heads, _, width = fresh.shape
        held = fresh.new_empty(rows, heads, self._store.slots, width)
        for row, (row_cache, count) in enumerate(zip(self.row_caches, self._new, strict=True)):
            start, middle, own = self.starts[row], self.slots - count, row_cache.held(index)
            held[row, :, :start] = 0
            if own is not None:
                held[row, :, start:middle] = own[which]
            held[row, :, middle : self.slots] = fresh[row, :, self.width - count :]
        return held

    def finish(self) -> None:
        """See `ForwardBatch`."""
        left = {row_cache.store for row_cache in self.row_caches if row_cache.store} - {self._store}
        states = [split_rows(layer, len(self.row_caches)) for layer in self.cache.layers]
        for index, (row_cache, row) in enumerate(zip(self.row_caches, self.rows, strict=True)):
            row_cache.move(self._store, row, self.starts[row], row_cache.length + self._new[index])
            row_cache.states = [layer and layer[index] for layer in states]
        # The layers know the pass: let go of them, or keys and values wait for the collector.
        self.cache.layers = []
        for store in left:
            if 2 * len(store.row_caches) <= store.rows:
                for row_cache in list(store.row_caches):
                    row_cache.leave()


def _find_in_place(
    row_caches: Sequence[RowCache], new: Sequence[int], *, idle: bool
) -> tuple[KVStore, int] | None:
    """Where rows end if they read on in their store, fewest tokens being moved.

    Args:
        row_caches: The rows.
        new: How many tokens each is to read.
        idle: Whether other rows of the store may go along.

    Returns:
        The store and the slot, or None if they cannot.
    """
    store, rows = row_caches[0].store, [row_cache.row for row_cache in row_caches]
    if store is None or any(row_cache.store is not store for row_cache in row_caches):
        return None
    whole, resting = rows == list(range(store.rows)), store.rows - len(row_caches)
    if not whole and not (idle and 0 <= resting <= MAX_IDLE_SHARE * store.rows):
        return None
    sizes = [(p.length, p.end, count) for p, count in zip(row_caches, new, strict=True)]
    ends = {end + count for _, end, count in sizes}
    if len(store.row_caches) != len({row_cache.row for row_cache in store.row_caches}):
        # Forks look on: nothing may be moved, and nothing written that they see.
        if whole and len(ends) == len(set(new)) == 1 and store.used == sizes[0][1]:
            return (store, end) if (end := ends.pop()) <= store.slots else None
        return None
    least = max(length + count for length, _, count in sizes)
    moved = {
        end: sum(length for length, old, count in sizes if old + count != end)
        for end in ends
        if least <= end <= store.slots
    }
    return (store, min(moved, key=lambda end: (moved[end], end))) if moved else None


class _AppendingLayer:
    """The part of an attention layer that keeps keys and values, in a pass."""

    running: RaggedBatch
    index: int
    keys: Tensor | None
    values: Tensor | None
    sliding_window: int | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See `Pass.append`; no more than the new tokens can see."""
        length, start = self.get_mask_sizes(key_states.shape[-2])
        self.keys, self.values = self.running.append(self.index, key_states, value_states)
        keys, values = (held.narrow(-2, start, length) for held in (self.keys, self.values))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many slots are shown, and how many before them are not."""
        slots = self.get_seq_length() + query_length
        shown = slots
        if self.sliding_window is not None:
            shown = min(slots, self.sliding_window - 1 + query_length)
        return shown, slots - shown

    def get_seq_length(self) -> int:
        """Slots so far."""
        return self.running.base if self.keys is None else self.running.slots


class _AttentionLayer(_AppendingLayer, DynamicLayer):
    """An attention layer in a pass."""


class _HybridLayer(_AppendingLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]
    """A layer of attention and states in a pass."""
