"""What rows have read, and passes that read more in several of them at once.

A row's keys and values are a stretch of a store that it shares with the rows that were read beside
it. Nothing that a row can see is ever written again, so a row is forked or cut without a copy. A
pass aligns rows at their ends: slots that precede a row are masked, and a token's slot is as far
from any other's as their positions are, whatever the rows' lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

_KNOWN = (DynamicLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, DummyLayer)
_STATES = ("conv_states", "recurrent_states")
_FLAGS = (
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)

_SPARE = 32
"""Slots that a store has at least for what comes next; an eighth of its size is more."""


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache whose attention layers keep everything, so that any suffix can be forgotten.

    Raises:
        TypeError: for a layer that keeps its past in some other way.
    """
    cache = DynamicCache(config=config)
    cache.layers = [_unbounded(layer) for layer in cache.layers]
    for layer in cache.layers:
        if type(layer) not in _KNOWN:
            raise TypeError(type(layer).__name__)
    return cache


def _unbounded(layer: Any) -> Any:
    """A layer that slides, as one that shows no more of its past, but forgets nothing."""
    whole: Any = layer
    if type(layer) is DynamicSlidingWindowLayer:
        whole = DynamicLayer()
    elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
        whole = LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    if whole is not layer:
        whole.is_sliding, whole.sliding_window = True, layer.sliding_window
    return whole


def has_states(cache: DynamicCache) -> bool:
    """Whether some layer keeps states without a time axis (convolutional, recurrent)."""
    return any(_stateful(layer) for layer in cache.layers)


def _stateful(layer: Any) -> bool:
    return hasattr(layer, "conv_states")


class _Store:
    """Keys and values by layer, `[rows, heads, slots, width]`, some slots not used yet.

    Attributes:
        rows: How many rows there are.
        used: Slots that some row may see; what stands behind them is free to be written.
        slots: Slots in all.
        layers: The tensors; None for layers without any.
        pasts: Who reads here.
    """

    def __init__(self, rows: int, used: int, layers: int, room: int = 0) -> None:
        self.rows, self.used = rows, used
        self.slots = used + room + max(_SPARE, (used + room) // 8)
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.pasts: WeakSet[Past] = WeakSet()


class Past:
    """What one row has read.

    Attributes:
        length: Tokens.
    """

    def __init__(self, empty: DynamicCache) -> None:
        """Nothing yet, as in an `empty` cache."""
        self.length = 0
        self._store: _Store | None = None
        self._row = self._start = 0
        self._states = [_states_of(layer) for layer in empty.layers]

    def fork(self) -> Past:
        """An independent copy."""
        twin = copy.copy(self)
        twin._states = self.snapshot()
        if self._store:
            self._store.pasts.add(twin)
        return twin

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens; states are left alone, see `restore`."""
        self.length = min(self.length, length)

    def snapshot(self) -> list[Any]:
        """The layers' states as they are; None for layers that can be cut."""
        return [None if layer is None else _states_of(layer) for layer in self._states]

    def restore(self, saved: Sequence[Any]) -> None:
        """Put the states of a snapshot back."""
        self._states = [None if layer is None else _states_of(layer) for layer in saved]

    def detach(self) -> None:
        """Hold its own keys and values alone, nothing beside or behind them."""
        self._leave()

    def tensors(self, snapshots: Sequence[Any] = ()) -> Iterator[Tensor]:
        """Everything that it keeps in memory, shared or not, and that snapshots of it keep."""
        for pair in self._store.layers if self._store else ():
            yield from pair or ()
        for layer in (*self._states, *snapshots):
            for name in _STATES if layer is not None else ():
                yield from (held for held in getattr(layer, name).values() if held is not None)

    def _move(self, store: _Store, row: int, start: int, length: int) -> None:
        if self._store:
            self._store.pasts.discard(self)
        store.pasts.add(self)
        self._store, self._row, self._start, self.length = store, row, start, length

    def _held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Its keys and values, `[heads, length, width]`."""
        pair = self._store.layers[layer] if self._store and self.length else None
        if pair is None:
            return None
        keys, values = (t[self._row].narrow(-2, self._start, self.length) for t in pair)
        return keys, values

    def _leave(self) -> None:
        """Take its own share along, so that the others' can be freed."""
        old = self._store
        if old is None:
            return
        store = _Store(1, self.length, len(old.layers))
        store.slots = self.length
        for layer in range(len(old.layers)):
            held = self._held(layer)
            if held:
                store.layers[layer] = held[0][None].clone(), held[1][None].clone()
        self._move(store, 0, 0, self.length)


class Pass:
    """Rows that read new tokens side by side, aligned at their ends.

    Attributes:
        width: The most new tokens of a row; rows with fewer have padding before them, whose keys
            and values are dropped.
        starts: The first slot of each row; what is before it has to be masked.
        slots: How many slots there are when the new tokens have been read.
        cache: What the model reads from and appends to.
    """

    def __init__(
        self, empty: DynamicCache, pasts: Sequence[Past], new: Sequence[int], room: int = 0
    ) -> None:
        """Plan to read `new` tokens in each row; with states, equally many.

        As many as `room` are known to follow: they will find their place without a copy.
        """
        self.pasts, self._new, self._empty = list(pasts), list(new), empty
        self.width = max(new)
        store, rows = pasts[0]._store, len(pasts)
        ends = {past._start + past.length for past in pasts}
        # The rows of the last pass, in their order, all of them, at their ends.
        self._same = (
            store is not None
            and all(p._store is store and p._row == i for i, p in enumerate(pasts))
            and (store.rows, len(ends), len(set(new))) == (rows, 1, 1)
        )
        before = ends.pop() if self._same else 0
        totals = [past.length + count for past, count in zip(pasts, new, strict=True)]
        self.slots = before + self.width if self._same else max(totals)
        self.starts = [self.slots - total for total in totals]
        self._appends = False
        if self._same and store is not None and store.slots >= self.slots:
            # What stands behind the rows is nobody's, or forks' that the rows were cut from.
            self._appends = store.used == before or len(store.pasts) == rows
        if self._appends and store is not None:
            # Claimed at once: a fork that stands here, too, will have to copy.
            self._store, store.used = store, self.slots
        else:
            self._store = _Store(rows, self.slots, len(empty.layers), room)
        self.cache = copy.copy(empty)
        self.cache.layers = [self._layer(index) for index in range(len(empty.layers))]

    @property
    def base(self) -> int:
        """Slots before the first new one."""
        return self.slots - self.width

    def _layer(self, index: int) -> Any:
        held = [past._states[index] for past in self.pasts]
        if isinstance(self._empty.layers[index], DummyLayer):
            return self._empty.layers[index]
        if held[0] is None:
            layer = _as(_Aligned, self._empty.layers[index])
        elif isinstance(held[0], DynamicLayer):
            layer = _as(_AlignedHybrid, _joined(held))
        else:
            return _joined(held)
        layer.running, layer.index = self, index
        return layer

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer `[B, heads, slots, width]`, the new ones at the end."""
        store = self._store
        if not self._appends:
            store.layers[index] = self._gather(index, 0, keys), self._gather(index, 1, values)
        pair = store.layers[index]
        if pair is None:
            raise RuntimeError(f"layer {index} has no keys to append to")
        if self._appends:
            for held, fresh in zip(pair, (keys, values), strict=True):
                held[:, :, self.base : self.slots] = fresh
        whole, theirs = (held.narrow(-2, 0, self.slots) for held in pair)
        return whole, theirs

    def _gather(self, index: int, which: int, fresh: Tensor) -> Tensor:
        """Keys (0) or values (1) of the rows, copied to where the pass wants them."""
        rows, heads, _, width = fresh.shape
        held = fresh.new_empty(rows, heads, self._store.slots, width)
        old = self.pasts[0]._store
        pair = old.layers[index] if self._same and old else None
        if pair is not None:
            held[:, :, : self.base] = pair[which].narrow(-2, 0, self.base)
            held[:, :, self.base : self.slots] = fresh
            return held
        for row, (past, count) in enumerate(zip(self.pasts, self._new, strict=True)):
            start, middle, own = self.starts[row], self.slots - count, past._held(index)
            held[row, :, :start] = 0
            if own is not None:
                held[row, :, start:middle] = own[which]
            held[row, :, middle : self.slots] = fresh[row, :, self.width - count :]
        return held

    def finish(self) -> None:
        """The rows have read their new tokens."""
        left = {past._store for past in self.pasts if past._store} - {self._store}
        states = [_parted(layer, len(self.pasts)) for layer in self.cache.layers]
        for row, (past, count) in enumerate(zip(self.pasts, self._new, strict=True)):
            past._move(self._store, row, self.starts[row], past.length + count)
            past._states = [layer and layer[row] for layer in states]
        # The layers know the pass: let go of them, or keys and values wait for the collector.
        self.cache.layers = []
        for store in left:
            if 2 * len(store.pasts) <= store.rows:
                for past in list(store.pasts):
                    past._leave()


class _Grows:
    """The part of an attention layer that keeps keys and values, in a pass."""

    running: Pass
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


class _Aligned(_Grows, DynamicLayer):
    """An attention layer in a pass."""


class _AlignedHybrid(_Grows, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]
    """A layer of attention and states in a pass."""


def _as(kind: type, layer: Any) -> Any:
    """A layer as one of another class."""
    fresh: Any = object.__new__(kind)
    fresh.__dict__.update(layer.__dict__)
    return fresh


def _states_of(layer: Any) -> Any:
    """A copy of a layer's states, without keys and values; None if it has none."""
    if not _stateful(layer):
        return None
    fresh = copy.copy(layer)
    for name in _STATES:
        held = getattr(layer, name).items()
        setattr(fresh, name, {i: None if t is None else t.clone() for i, t in held})
    for name in _FLAGS:
        setattr(fresh, name, dict(getattr(layer, name)))
    return fresh


def _joined(rows: Sequence[Any]) -> Any:
    """The states of several rows as a batch's, all empty or none."""
    layer = _states_of(rows[0])
    for name in _STATES if len(rows) > 1 else ():
        for i, first in getattr(layer, name).items():
            if first is not None:
                getattr(layer, name)[i] = torch.cat([getattr(row, name)[i] for row in rows])
    return layer


def _parted(batch: Any, rows: int) -> list[Any] | None:
    """The inverse of `_joined`; None for a layer without states."""
    if not _stateful(batch):
        return None
    parts: list[Any] = []
    for row in range(rows):
        single: Any = copy.copy(batch)
        if isinstance(batch, _AlignedHybrid):
            single = _as(LinearAttentionAndFullAttentionLayer, batch)
            single.keys = single.values = None
            del single.running, single.index
        for name in _STATES:
            held = getattr(batch, name).items()
            own = {i: None if t is None else t[row : row + 1].clone() for i, t in held}
            setattr(single, name, own)
        for name in _FLAGS:
            setattr(single, name, dict(getattr(batch, name)))
        parts.append(single)
    return parts
