"""Caches of one row each: copied, joined into batches, taken apart, rolled back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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
    """A layer that slides, as one that forgets nothing; masks look after the window."""
    if type(layer) is DynamicSlidingWindowLayer:
        return DynamicLayer()
    if type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return layer


def has_states(cache: DynamicCache) -> bool:
    """Whether some layer keeps states without a time axis (convolutional, recurrent)."""
    return any(_stateful(layer) for layer in cache.layers)


def _stateful(layer: Any) -> bool:
    return hasattr(layer, "conv_states")


def _attends(layer: Any) -> bool:
    return getattr(layer, "keys", None) is not None


def fork(cache: DynamicCache) -> DynamicCache:
    """An independent copy: keys and values are shared, since nothing writes into them."""
    fresh = copy.copy(cache)
    fresh.layers = [_copied(layer) for layer in cache.layers]
    return fresh


def _copied(layer: Any) -> Any:
    fresh = copy.copy(layer)
    if _stateful(layer):
        for name in _STATES:
            held = getattr(layer, name).items()
            setattr(fresh, name, {i: None if t is None else t.clone() for i, t in held})
        for name in _FLAGS:
            setattr(fresh, name, dict(getattr(layer, name)))
    return fresh


def snapshot(cache: DynamicCache) -> list[Any]:
    """The layers' states as they are; None for layers that can be cut."""
    saved = [_copied(layer) if _stateful(layer) else None for layer in cache.layers]
    for layer in saved:
        if isinstance(layer, DynamicLayer):
            layer.keys = layer.values = None
    return saved


def restore(cache: DynamicCache, saved: Sequence[Any]) -> None:
    """Put the states back; keys and values stay, to be cut."""
    for index, states in enumerate(saved):
        if states is not None:
            layer = _copied(states)
            if isinstance(layer, DynamicLayer):
                now: Any = cache.layers[index]
                layer.keys, layer.values = now.keys, now.values
                layer.is_initialized = now.is_initialized
            cache.layers[index] = layer


def cut(cache: DynamicCache, length: int) -> None:
    """Keep the keys and values of the first `length` tokens."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def detach(cache: DynamicCache) -> None:
    """Let go of what was cut off: keys and values stop being views of longer ones."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()


def tensors(layers: Sequence[Any]) -> Iterator[Tensor]:
    """Everything that layers, or copies of their states, hold."""
    for layer in layers:
        if _attends(layer):
            yield from (layer.keys, layer.values)
        if layer is not None and _stateful(layer):
            for name in _STATES:
                yield from (t for t in getattr(layer, name).values() if t is not None)


def join(caches: Sequence[DynamicCache], lengths: Sequence[int]) -> DynamicCache:
    """One left-padded batch of single-row caches, all empty or none; a single one is used as is."""
    if len(caches) == 1:
        return caches[0]
    batch, longest = copy.copy(caches[0]), max(lengths)
    batch.layers = []
    for rows in zip(*(cache.layers for cache in caches), strict=True):
        layer = _copied(rows[0])
        if _attends(layer):
            for name in ("keys", "values"):
                parts = [
                    nn.functional.pad(getattr(row, name), (0, 0, longest - length, 0))
                    for row, length in zip(rows, lengths, strict=True)
                ]
                setattr(layer, name, torch.cat(parts))
        if _stateful(layer):
            for name in _STATES:
                for i, first in getattr(layer, name).items():
                    if first is not None:
                        getattr(layer, name)[i] = torch.cat([getattr(r, name)[i] for r in rows])
        batch.layers.append(layer)
    return batch


def part(batch: DynamicCache, lengths: Sequence[int]) -> list[DynamicCache]:
    """The inverse of `join`; `lengths` are those before any tokens were added."""
    if len(lengths) == 1:
        return [batch]
    longest = max(lengths)
    return [_row(batch, index, longest - length) for index, length in enumerate(lengths)]


def _row(batch: DynamicCache, index: int, pads: int) -> DynamicCache:
    cache = copy.copy(batch)
    cache.layers = []
    for layer in batch.layers:
        single: Any = copy.copy(layer)
        if _attends(layer):
            single.keys = single.keys[index : index + 1, :, pads:]
            single.values = single.values[index : index + 1, :, pads:]
        if _stateful(layer):
            for name in _STATES:
                held = getattr(layer, name).items()
                rows = {i: None if t is None else t[index : index + 1].clone() for i, t in held}
                setattr(single, name, rows)
            for name in _FLAGS:
                setattr(single, name, dict(getattr(layer, name)))
        cache.layers.append(single)
    return cache
