"""Forward passes over several rows that read different numbers of new tokens."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer

from packfuse.hf_compat.models import is_dummy
from packfuse.models.kv.recurrent import split_rows, stack_rows, with_class
from packfuse.models.kv.store import KVStore, RowCache, has_states
from packfuse.transfer import upload

MAX_IDLE_SHARE = 0.25
"""Largest share of a store's rows that read nothing in a pass over the whole store.

If more rows are idle, the keys and values of the reading rows are copied to a new store.
"""


class ForwardBatch(ABC):
    """A forward pass in which rows read new tokens.

    Attributes:
        rows: For each row cache, its row in the batch.
        size: Number of rows of the batch, idle ones included.
        width: The most new tokens of a row.
        cache: The cache that the model reads and updates.
    """

    rows: list[int]
    size: int
    width: int
    cache: DynamicCache

    @abstractmethod
    def flat_positions(self, which: int, positions: Sequence[int]) -> list[int]:
        """Indices into the flattened batch (row times width plus column).

        Args:
            which: Index of a row cache.
            positions: Indices into its new tokens.
        """

    @abstractmethod
    def inputs(
        self, ids: Sequence[Sequence[int]], device: torch.device, *, positions: bool
    ) -> dict[str, Any]:
        """Keyword arguments of the model's `forward`, except the cache.

        Args:
            ids: The new token ids of each row cache.
            device: Device of the tensors.
            positions: Whether the model takes `position_ids`.
        """

    @abstractmethod
    def finish(self) -> None:
        """Update the row caches after the model has run."""


class RaggedBatch(ForwardBatch):
    """A forward pass whose rows are aligned at their ends.

    Where the rows are all of one store they stay in it, and as few keys and values as possible are
    moved so that all rows end at the same slot. Idle rows of the store are part of the batch as
    padding. Rows with fewer new tokens are padded at the left; the keys and values of padding are
    dropped.

    Attributes:
        starts: By row, its first slot; the slots before it are masked.
        slots: Number of slots in use after the pass.
    """

    def __init__(
        self, empty: DynamicCache, row_caches: Sequence[RowCache], new: Sequence[int], room: int = 0
    ) -> None:
        """Plan the pass.

        Args:
            empty: An empty cache of the model.
            row_caches: The rows.
            new: Number of new tokens of each row; all equal if the cache has states.
            room: Tokens that later passes will read, for which a new store gets free slots.
        """
        self.row_caches, self._new, self._empty_cache = list(row_caches), list(new), empty
        self.width = max(new)
        totals = [
            row_cache.length + count for row_cache, count in zip(row_caches, new, strict=True)
        ]
        found = _find_in_place(row_caches, new, idle=not has_states(empty))
        self._in_place = found is not None
        if found is not None:
            store, end = found
            self.rows, self.size, self.slots = [p.row for p in row_caches], store.rows, end
            others = [
                row_cache.end for row_cache in store.row_caches if row_cache not in self.row_caches
            ]
            # Set before the pass runs: a fork that ends at the same slot will copy.
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
        """Number of slots before the first new one."""
        return self.slots - self.width

    def flat_positions(self, which: int, positions: Sequence[int]) -> list[int]:
        """See `ForwardBatch`."""
        before = (self.rows[which] + 1) * self.width - self._new[which]
        return [before + position for position in positions]

    def inputs(
        self, ids: Sequence[Sequence[int]], device: torch.device, *, positions: bool
    ) -> dict[str, Any]:
        """See `ForwardBatch`."""
        padded = [[0] * self.width for _ in range(self.size)]
        for row, new in zip(self.rows, ids, strict=True):
            padded[row][self.width - len(new) :] = new
        inputs: dict[str, Any] = {
            "input_ids": upload(padded, device),
            "use_cache": True,
        }
        starts = upload(self.starts, device)[:, None]
        slots = torch.arange(self.slots, device=device)
        if any(self.starts):
            inputs["attention_mask"] = (slots >= starts).long()
        if positions:
            inputs["position_ids"] = (slots[self.base :] - starts).clamp(min=0)
        return inputs

    def _layer(self, index: int) -> Any:
        states = [row_cache.states[index] for row_cache in self.row_caches]
        if is_dummy(self._empty_cache.layers[index]):
            return self._empty_cache.layers[index]
        if states[0] is None:
            layer = with_class(_AttentionLayer, self._empty_cache.layers[index])
        elif isinstance(states[0], DynamicLayer):
            layer = with_class(_HybridLayer, stack_rows(states))
        else:
            return stack_rows(states)
        layer.forward_batch, layer.index = self, index
        return layer

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer.

        Args:
            index: The layer.
            keys: New keys `[size, heads, width, head_dim]`.
            values: New values, of the same shape.

        Returns:
            All keys and values, `[size, heads, slots, head_dim]`, the new ones at the end.
        """
        store, fresh = self._store, (keys, values)
        if self._in_place:
            for which, new in enumerate(fresh):
                self._write(store.layer(index)[which], new)
        else:
            store.layers[index] = self._gather(index, 0, keys), self._gather(index, 1, values)
        all_keys, all_values = (t.narrow(-2, 0, self.slots) for t in store.layer(index))
        return all_keys, all_values

    def _write(self, stored: Tensor, fresh: Tensor) -> None:
        """Write new keys or values to the store, after moving rows whose end is another slot."""
        # Slots that were never written may hold NaN, which no mask hides: they are set to zero.
        for row_cache, row in zip(self.row_caches, self.rows, strict=True):
            start, end = self.starts[row], row_cache.end
            if row_cache.start != start:
                old = stored[row, :, row_cache.start : end].clone()
                stored[row, :, start : start + row_cache.length] = old
                stored[row, :, end:start] = 0
        if len(self.rows) == self.size and set(self._new) == {self.width}:
            stored[:, :, self.base : self.slots] = fresh
            return
        for row, count in zip(self.rows, self._new, strict=True):
            stored[row, :, self.slots - count : self.slots] = fresh[row, :, self.width - count :]
        ends = {row_cache.row: row_cache.end for row_cache in self._store.row_caches}
        for row in set(range(self.size)) - set(self.rows):
            stored[row, :, max(self.base, ends.get(row, 0)) : self.slots] = 0

    def _gather(self, index: int, which: int, fresh: Tensor) -> Tensor:
        """Keys (`which` 0) or values (1) of the rows, old and new, copied to a new tensor."""
        rows, heads, _, head_dim = fresh.shape
        gathered = fresh.new_empty(rows, heads, self._store.slots, head_dim)
        for row, (row_cache, count) in enumerate(zip(self.row_caches, self._new, strict=True)):
            start, middle = self.starts[row], self.slots - count
            old = row_cache.keys_values(index)
            gathered[row, :, :start] = 0
            if old is not None:
                gathered[row, :, start:middle] = old[which]
            gathered[row, :, middle : self.slots] = fresh[row, :, self.width - count :]
        return gathered

    def finish(self) -> None:
        """See `ForwardBatch`."""
        left = {row_cache.store for row_cache in self.row_caches if row_cache.store} - {self._store}
        states = [split_rows(layer, len(self.row_caches)) for layer in self.cache.layers]
        for index, (row_cache, row) in enumerate(zip(self.row_caches, self.rows, strict=True)):
            row_cache.move(self._store, row, self.starts[row], row_cache.length + self._new[index])
            row_cache.states = [layer and layer[index] for layer in states]
        # The layers refer to this batch: without the cycle, tensors are freed at once.
        self.cache.layers = []
        for store in left:
            if not store.static and 2 * len(store.row_caches) <= store.rows:
                for row_cache in list(store.row_caches):
                    row_cache.detach()


def _find_in_place(
    row_caches: Sequence[RowCache], new: Sequence[int], *, idle: bool
) -> tuple[KVStore, int] | None:
    """The store and the end slot with which rows can read in place, fewest tokens being moved.

    Args:
        row_caches: The rows.
        new: How many tokens each of them is to read.
        idle: Whether other rows of the store may be part of the batch as padding.

    Returns:
        The store and the slot after the last new token; None if the rows have to be copied.
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
        # Forks share rows: nothing may be moved, and no slot that a fork refers to written.
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
    """Mixin for attention layers that store their keys and values through a `RaggedBatch`."""

    forward_batch: RaggedBatch
    index: int
    keys: Tensor | None
    values: Tensor | None
    sliding_window: int | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """See `RaggedBatch.append`; returns only what the sliding window of a new token covers."""
        length, start = self.get_mask_sizes(key_states.shape[-2])
        self.keys, self.values = self.forward_batch.append(self.index, key_states, value_states)
        keys, values = (tensor.narrow(-2, start, length) for tensor in (self.keys, self.values))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of slots that attention gets, and number of slots before them."""
        slots = self.get_seq_length() + query_length
        shown = slots
        if self.sliding_window is not None:
            shown = min(slots, self.sliding_window - 1 + query_length)
        return shown, slots - shown

    def get_seq_length(self) -> int:
        """Number of slots so far."""
        return self.forward_batch.base if self.keys is None else self.forward_batch.slots


class _AttentionLayer(_AppendingLayer, DynamicLayer):
    """An attention layer in a forward pass."""


class _HybridLayer(_AppendingLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]
    """A layer with attention and states in a forward pass."""
