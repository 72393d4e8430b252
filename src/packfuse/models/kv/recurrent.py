"""States of layers without a time axis (convolutional, recurrent), one row's or a batch's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from packfuse.hf_compat import STATE_FLAGS, STATES, is_stateful


def with_class(kind: type, layer: Any) -> Any:
    """A layer as one of another class."""
    fresh: Any = object.__new__(kind)
    fresh.__dict__.update(layer.__dict__)
    return fresh


def copy_states(layer: Any) -> Any:
    """A copy of a layer's states, without keys and values; None if it has none."""
    if not is_stateful(layer):
        return None
    fresh = copy.copy(layer)
    for name in STATES:
        held = getattr(layer, name).items()
        setattr(fresh, name, {i: None if t is None else t.clone() for i, t in held})
    for name in STATE_FLAGS:
        setattr(fresh, name, dict(getattr(layer, name)))
    return fresh


def stack_rows(rows: Sequence[Any]) -> Any:
    """The states of several rows as a batch's, all empty or none."""
    layer = copy_states(rows[0])
    for name in STATES if len(rows) > 1 else ():
        for i, first in getattr(layer, name).items():
            if first is not None:
                getattr(layer, name)[i] = torch.cat([getattr(row, name)[i] for row in rows])
    return layer


def split_rows(batch: Any, rows: int) -> list[Any] | None:
    """The inverse of `stack_rows`; None for a layer without states."""
    if not is_stateful(batch):
        return None
    parts: list[Any] = []
    for row in range(rows):
        single: Any = copy.copy(batch)
        if hasattr(batch, "running"):
            single = with_class(LinearAttentionAndFullAttentionLayer, batch)
            single.keys = single.values = None
            del single.running, single.index
        for name in STATES:
            held = getattr(batch, name).items()
            own = {i: None if t is None else t[row : row + 1].clone() for i, t in held}
            setattr(single, name, own)
        for name in STATE_FLAGS:
            setattr(single, name, dict(getattr(batch, name)))
        parts.append(single)
    return parts
