"""Storage of the KV cache.

The keys and values of a row are a range of slots of a store, which the row shares with the rows of
the same forward pass. Slots that several row caches refer to are never written again, so a row is
forked or cut without copying keys and values. The distance of two tokens in slots equals their
distance in positions, whatever the lengths of the rows: forward passes align rows at their ends,
and slots before the start of a row are masked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from packfuse.errors import UnsupportedError
from packfuse.hf_compat.models import STATES, is_stateful, is_supported, unbounded
from packfuse.models.kv.recurrent import copy_states

_SPARE_SLOTS = 32
"""Least number of free slots of a new store; an eighth of its size if that is more."""


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache whose attention layers keep every token, so that any suffix can be dropped.

    Raises:
        UnsupportedError: for a layer of an unsupported kind, which the message names, or if no
            layer has attention.
    """
    try:
        cache = DynamicCache(config=config)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UnsupportedError(f"transformers makes none for it ({error!r})") from error
    cache.layers = [unbounded(layer) for layer in cache.layers]
    # Models without attention (Mamba) call their LM head in ways that `LMHead` does not know.
    for layer in cache.layers:
        kind = type(layer).__name__
        if all(cache.is_linear):
            raise UnsupportedError(f"{kind} in all layers, and no attention")
        if not is_supported(layer):
            raise UnsupportedError(kind)
    return cache


def has_states(cache: DynamicCache) -> bool:
    """Whether some layer has states without a time axis (convolutional, recurrent)."""
    return any(is_stateful(layer) for layer in cache.layers)


class KVStore:
    """Keys and values by layer, `[rows, heads, slots, head_dim]`, with free slots at the end.

    Attributes:
        rows: Number of rows.
        used: Slots before this index may belong to some row; those from it on are free.
        slots: Number of slots, free ones included.
        layers: The tensors; None for layers without keys and values.
        row_caches: The row caches whose keys and values are here.
        static: Whether its tensors keep their addresses; see `StaticStore`.
    """

    static = False

    def __init__(self, rows: int, used: int, layers: int, room: int = 0) -> None:
        """A store without tensors, with free slots for `room` more tokens and some spare ones."""
        self.rows, self.used = rows, used
        self.slots = used + room + max(_SPARE_SLOTS, (used + room) // 8)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.row_caches: WeakSet[RowCache] = WeakSet()
        self._zeroed = False

    def zero_free_slots(self) -> None:
        """Write zeros to slots that were never written: they may hold NaN, which no mask hides."""
        if not self._zeroed:
            for tensor in (tensor for pair in self.layers for tensor in pair or ()):
                tensor[:, :, self.used :] = 0
            self._zeroed = True

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer.

        Raises:
            RuntimeError: if the layer has none.
        """
        pair = self.layers[index]
        if pair is None:
            raise RuntimeError(f"layer {index} has no keys and values")
        return pair


class RowCache:
    """The KV cache of one row: a view of a store, and the row's states.

    Attributes:
        length: Number of tokens.
        store: The store of its keys and values; None if there are none yet.
        row: Index of its row in the store.
        start: Its first slot.
        states: By layer, the convolutional and recurrent states; None for layers without any.
    """

    def __init__(self, empty: DynamicCache) -> None:
        """A row without tokens, with the layers of an `empty` cache."""
        self.length = 0
        self.store: KVStore | None = None
        self.row = self.start = 0
        self.states = [copy_states(layer) for layer in empty.layers]

    @property
    def end(self) -> int:
        """The slot after its last token."""
        return self.start + self.length

    def fork(self) -> RowCache:
        """An independent copy that refers to the same slots."""
        twin = copy.copy(self)
        twin.states = self.snapshot()
        if self.store:
            self.store.row_caches.add(twin)
        return twin

    def cut(self, length: int) -> None:
        """Keep the keys and values of the first `length` tokens; for states see `restore`."""
        self.length = min(self.length, length)

    def snapshot(self) -> list[Any]:
        """Copies of the states by layer; None for layers without states."""
        return [None if layer is None else copy_states(layer) for layer in self.states]

    def restore(self, saved: Sequence[Any]) -> None:
        """Set the states to those of a snapshot."""
        self.states = [None if layer is None else copy_states(layer) for layer in saved]

    def tensors(self, snapshots: Sequence[Any] = ()) -> Iterator[Tensor]:
        """All tensors that the row and its snapshots keep in memory, the whole store included."""
        for pair in self.store.layers if self.store else ():
            yield from pair or ()
        for layer in (*self.states, *snapshots):
            for name in STATES if layer is not None else ():
                states = getattr(layer, name).values()
                yield from (tensor for tensor in states if tensor is not None)

    def move(self, store: KVStore, row: int, start: int, length: int) -> None:
        """Refer to slots `start:start + length` of a row of a store; no tensors are copied."""
        if self.store:
            self.store.row_caches.discard(self)
        store.row_caches.add(self)
        self.store, self.row, self.start, self.length = store, row, start, length

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer, `[heads, length, head_dim]`; None if there are none."""
        pair = self.store.layers[layer] if self.store and self.length else None
        if pair is None:
            return None
        keys, values = (t[self.row].narrow(-2, self.start, self.length) for t in pair)
        return keys, values

    def detach(self) -> None:
        """Copy keys and values to a store of this row alone, without free slots."""
        old = self.store
        if old is None:
            return
        store = KVStore(1, self.length, len(old.layers))
        store.slots = self.length
        for layer in range(len(old.layers)):
            pair = self.keys_values(layer)
            if pair:
                store.layers[layer] = pair[0][None].clone(), pair[1][None].clone()
        self.move(store, 0, 0, self.length)
