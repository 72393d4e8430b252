"""KV stores whose tensors keep size and address, so that a step over one can be captured once.

A row enters such a store when its prompt has been read, and stays until it is too long for it. All
rows begin in slot 0 unless another kind of pass has moved them. Steps run on the first rows of a
store, as many as a power of two, so that one store serves any number of rows up to its size.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from packfuse.models.kv.store import KVStore, RowCache

MAX_STEP_ROWS = 64
"""Most rows of a static store."""

SCRATCH_SLOTS = 16
"""Slots behind the usable ones, to which steps write their padding. Also the most new tokens of a
row in a step."""

FIRST_SLOTS = 256
"""Usable slots of the smallest store."""

HEADROOM = 64
"""Least number of free slots of a row that enters a store."""

MAX_STEPS = 24
"""Most steps of one store that are kept: for numbers of rows and of new tokens, and LM heads."""

_MAX_IDLE = 1
"""Most stores without rows that are kept for the next prompts."""


class StaticStore(KVStore):
    """A store that is never replaced by a larger one while rows are in it.

    Attributes:
        steps: The captured steps over this store, least recently used first.
    """

    static = True

    def __init__(self, rows: int, slots: int, like: RowCache) -> None:
        """A store of zeros.

        Args:
            rows: Number of rows.
            slots: Number of usable slots.
            like: A row with tokens, whose layers have the shapes of this store's.
        """
        source = like.store
        if source is None:
            raise ValueError("rows that have read no tokens have no KV store")
        super().__init__(rows, 0, len(source.layers))
        self.slots, self._zeroed = slots, True
        self.steps: OrderedDict[Hashable, Any] = OrderedDict()
        # Steps write in any mode, which tensors of inference mode do not allow.
        with torch.inference_mode(False):
            self.layers = [
                pair
                and tuple(  # type: ignore[misc]
                    t.new_zeros(rows, t.shape[1], slots + SCRATCH_SLOTS, t.shape[3]) for t in pair
                )
                for pair in source.layers
            ]

    @property
    def occupied(self) -> set[int]:
        """The rows that some row cache refers to."""
        return {row_cache.row for row_cache in self.row_caches}

    def ends(self) -> list[int]:
        """By row, the slot after the last token of its longest row cache."""
        ends = [0] * self.rows
        for row_cache in self.row_caches:
            ends[row_cache.row] = max(ends[row_cache.row], row_cache.end)
        return ends

    def enter(self, row_cache: RowCache, row: int) -> None:
        """Copy the keys and values of a row to a free row of this store, from slot 0 on."""
        length = row_cache.length
        for index, pair in enumerate(self.layers):
            known = row_cache.keys_values(index)
            if pair is None or known is None:
                continue
            for stored, old in zip(pair, known, strict=True):
                stored[row, :, :length] = old
                # What another row left there may be NaN, which no mask hides.
                stored[row, :, length:] = 0
        row_cache.move(self, row, 0, length)

    def staying(self, row_caches: Sequence[RowCache], new: Sequence[int]) -> list[RowCache]:
        """Those rows that can read `new` tokens each where they are.

        A row cannot if it is too long, or if another row that is in the same place goes first.
        """
        ends, taken, found = self.ends(), set[int](), list[RowCache]()
        for row_cache, count in zip(row_caches, new, strict=True):
            row = row_cache.row
            here = row_cache.store is self and row not in taken
            # The tokens of a longer fork must not be overwritten.
            if here and row_cache.end == ends[row] and row_cache.end + count <= self.slots:
                taken.add(row)
                found.append(row_cache)
        return found

    def step(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The captured step of a kind; made if it is not there."""
        if key not in self.steps:
            self.steps[key] = make()
            if len(self.steps) > MAX_STEPS:
                self.steps.popitem(last=False)
        self.steps.move_to_end(key)
        return self.steps[key]


class DecodeStores:
    """The static stores of one member, and which rows are where.

    Attributes:
        stores: Least recently used first; at most `_MAX_IDLE` of them are without rows.
    """

    def __init__(self, longest: int, has_memory: Callable[[int], bool]) -> None:
        """Start without stores.

        Args:
            longest: Most tokens of a row.
            has_memory: Whether there is room for so many bytes more on the device.
        """
        self.stores: list[StaticStore] = []
        self._longest, self._has_memory = longest, has_memory

    def place(self, row_caches: Sequence[RowCache], new: Sequence[int]) -> StaticStore | None:
        """The store in which rows read `new` tokens each; those that are elsewhere are moved there.

        Returns:
            The store; None if there are too many rows, or no memory for them.
        """
        if len(row_caches) > MAX_STEP_ROWS:
            return None
        homes = Counter(r.store for r in row_caches if isinstance(r.store, StaticStore))
        store = homes.most_common(1)[0][0] if homes else None
        needed = max(r.length + n for r, n in zip(row_caches, new, strict=True))
        if store is None or not _has_room(store, row_caches, new, needed):
            store = self._open(row_caches, needed)
            if store is None:
                return None
        staying = store.staying(row_caches, new)
        for row_cache in row_caches:
            if row_cache not in staying:
                store.enter(row_cache, _free_rows(store)[0])
        _close_ranks(store, row_caches)
        self._touch(store)
        return store

    def _open(self, row_caches: Sequence[RowCache], needed: int) -> StaticStore | None:
        """A store without rows for these rows; None if there is no memory for it."""
        rows = rows_step(len(row_caches))
        slots = slots_step(min(needed + HEADROOM, self._longest), self._longest)
        for store in self.stores:
            if not store.row_caches and store.rows >= rows and slots <= store.slots <= 2 * slots:
                return store
        pairs = row_caches[0].store.layers if row_caches[0].store else ()
        tensors = [tensor for pair in pairs for tensor in pair or ()]
        one_slot = sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)
        if not self._has_memory(rows * (slots + SCRATCH_SLOTS) * one_slot):
            return None
        try:
            store = StaticStore(rows, slots, row_caches[0])
        except torch.OutOfMemoryError:
            return None  # others may use the device
        self.stores.append(store)
        return store

    def _touch(self, store: StaticStore) -> None:
        """Note that a store is in use, and drop those that have been idle longest."""
        self.stores = [*(other for other in self.stores if other is not store), store]
        idle = [other for other in self.stores if not other.row_caches]
        for other in idle[: max(0, len(idle) - _MAX_IDLE)]:
            self.stores.remove(other)

    def clear(self) -> None:
        """Drop all stores with their steps; rows that are in them keep their keys and values."""
        for store in self.stores:
            store.steps.clear()
        self.stores = []


def rows_step(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def slots_step(needed: int, longest: int) -> int:
    """The least usual number of slots that is not below `needed`, and at most `longest`.

    Example:
        >>> [slots_step(needed, 10_000) for needed in (10, 257, 400, 9_000)]
        [256, 384, 512, 10000]
    """
    slots = FIRST_SLOTS
    while slots < needed:
        slots = slots * 3 // 2 if slots & (slots - 1) == 0 else slots * 4 // 3
    return min(slots, longest)


def _has_room(
    store: StaticStore, row_caches: Sequence[RowCache], new: Sequence[int], needed: int
) -> bool:
    moving = len(row_caches) - len(store.staying(row_caches, new))
    return not moving or (needed <= store.slots and moving <= len(_free_rows(store)))


def _free_rows(store: StaticStore) -> list[int]:
    occupied = store.occupied
    return [row for row in range(store.rows) if row not in occupied]


def _close_ranks(store: StaticStore, row_caches: Sequence[RowCache]) -> None:
    """Move rows that would make a step run on more rows than are in use."""
    occupied = store.occupied
    limit = rows_step(len(occupied))
    free = [row for row in range(limit) if row not in occupied]
    alone = Counter(row_cache.row for row_cache in store.row_caches)
    for row_cache in row_caches:
        if row_cache.row >= limit and alone[row_cache.row] == 1 and free:
            store.enter(row_cache, free.pop(0))
