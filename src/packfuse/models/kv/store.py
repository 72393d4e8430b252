"""What rows have read.

A row's keys and values are a stretch of a store that it shares with the rows that were read beside
it. Where several rows see the same stretch nothing in it is ever written again, so a row is forked
or cut without a copy. A token's slot is as far from any other's as their positions are, whatever
the rows' lengths: passes align rows at their ends, and slots that precede a row are masked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from packfuse.hf_compat import STATES, is_stateful, is_supported, unbounded
from packfuse.models.kv.recurrent import copy_states

_SPARE_SLOTS = 32
"""Slots that a store has at least for what comes next; an eighth of its size is more."""


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache whose attention layers keep everything, so that any suffix can be forgotten.

    Raises:
        TypeError: for a layer that keeps its past in some other way, or none that has attention.
    """
    cache = DynamicCache(config=config)
    cache.layers = [unbounded(layer) for layer in cache.layers]
    for layer in cache.layers:
        # What has no attention at all (Mamba) works with its output head in ways of its own.
        if not is_supported(layer) or all(cache.is_linear):
            raise TypeError(type(layer).__name__)
    return cache


def has_states(cache: DynamicCache) -> bool:
    """Whether some layer keeps states without a time axis (convolutional, recurrent)."""
    return any(is_stateful(layer) for layer in cache.layers)


class KVStore:
    """Keys and values by layer, `[rows, heads, slots, width]`, some slots not used yet.

    Attributes:
        rows: How many rows there are.
        used: Slots that some row may see; what stands behind them is free to be written.
        slots: Slots in all.
        layers: The tensors; None for layers without any.
        row_caches: Who reads here.
    """

    def __init__(self, rows: int, used: int, layers: int, room: int = 0) -> None:
        """Empty, with `room` for what is known to follow, and some more."""
        self.rows, self.used = rows, used
        self.slots = used + room + max(_SPARE_SLOTS, (used + room) // 8)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.row_caches: WeakSet[RowCache] = WeakSet()
        self._blank = False

    def blank(self) -> None:
        """Put numbers where nobody has written yet: if that holds NaN, no mask hides it."""
        if not self._blank:
            for held in (held for pair in self.layers for held in pair or ()):
                held[:, :, self.used :] = 0
            self._blank = True

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer."""
        pair = self.layers[index]
        if pair is None:
            raise RuntimeError(f"layer {index} keeps no keys")
        return pair


class RowCache:
    """What one row has read.

    Attributes:
        length: Tokens.
        store: Where its keys and values are; None where there are none yet.
        row: Which row of the store it is.
        start: Its first slot.
        states: By layer, a copy of what has no time axis; None where there is none.
    """

    def __init__(self, empty: DynamicCache) -> None:
        """Nothing yet, as in an `empty` cache."""
        self.length = 0
        self.store: KVStore | None = None
        self.row = self.start = 0
        self.states = [copy_states(layer) for layer in empty.layers]

    @property
    def end(self) -> int:
        """The slot behind its last."""
        return self.start + self.length

    def fork(self) -> RowCache:
        """An independent copy."""
        twin = copy.copy(self)
        twin.states = self.snapshot()
        if self.store:
            self.store.row_caches.add(twin)
        return twin

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens; states are left alone, see `restore`."""
        self.length = min(self.length, length)

    def snapshot(self) -> list[Any]:
        """The layers' states as they are; None for layers that can be cut."""
        return [None if layer is None else copy_states(layer) for layer in self.states]

    def restore(self, saved: Sequence[Any]) -> None:
        """Put the states of a snapshot back."""
        self.states = [None if layer is None else copy_states(layer) for layer in saved]

    def tensors(self, snapshots: Sequence[Any] = ()) -> Iterator[Tensor]:
        """Everything that it keeps in memory, shared or not, and that snapshots of it keep."""
        for pair in self.store.layers if self.store else ():
            yield from pair or ()
        for layer in (*self.states, *snapshots):
            for name in STATES if layer is not None else ():
                yield from (held for held in getattr(layer, name).values() if held is not None)

    def move(self, store: KVStore, row: int, start: int, length: int) -> None:
        """Stand in a store from now on."""
        if self.store:
            self.store.row_caches.discard(self)
        store.row_caches.add(self)
        self.store, self.row, self.start, self.length = store, row, start, length

    def held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Its keys and values, `[heads, length, width]`."""
        pair = self.store.layers[layer] if self.store and self.length else None
        if pair is None:
            return None
        keys, values = (t[self.row].narrow(-2, self.start, self.length) for t in pair)
        return keys, values

    def leave(self) -> None:
        """Hold its own keys and values alone, nothing beside or behind them."""
        old = self.store
        if old is None:
            return
        store = KVStore(1, self.length, len(old.layers))
        store.slots = self.length
        for layer in range(len(old.layers)):
            held = self.held(layer)
            if held:
                store.layers[layer] = held[0][None].clone(), held[1][None].clone()
        self.move(store, 0, 0, self.length)
