"""Convolutional and recurrent states of cache layers, of one row or of a batch.

States have no time axis: they can be copied and restored, but not cut to fewer tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from packfuse.hf_compat.models import STATE_FLAGS, STATES, is_stateful


def with_class(kind: type, layer: Any) -> Any:
    """A shallow copy of a cache layer that is an instance of another class.

    The constructor of `kind` is not called: the copy has the attributes of `layer` and no others.
    """
    fresh: Any = object.__new__(kind)
    fresh.__dict__.update(layer.__dict__)
    return fresh


def copy_states(layer: Any) -> Any:
    """A copy of a layer and its states, without keys and values; None for one without states."""
    if not is_stateful(layer):
        return None
    fresh = copy.copy(layer)
    for name in STATES:
        states = getattr(layer, name).items()
        setattr(fresh, name, {i: None if t is None else t.clone() for i, t in states})
    for name in STATE_FLAGS:
        setattr(fresh, name, dict(getattr(layer, name)))
    return fresh


def stack_rows(rows: Sequence[Any]) -> Any:
    """The layers of several rows as one layer of a batch; the states of all are empty, or none."""
    layer = copy_states(rows[0])
    for name in STATES if len(rows) > 1 else ():
        for i, first in getattr(layer, name).items():
            if first is not None:
                getattr(layer, name)[i] = torch.cat([getattr(row, name)[i] for row in rows])
    return layer


def split_rows(batch: Any, rows: int) -> list[Any] | None:
    """The inverse of `stack_rows`: a layer for each row; None for a layer without states."""
    if not is_stateful(batch):
        return None
    parts: list[Any] = []
    for row in range(rows):
        single: Any = copy.copy(batch)
        if hasattr(batch, "forward_batch"):
            single = with_class(LinearAttentionAndFullAttentionLayer, batch)
            single.keys = single.values = None
            del single.forward_batch, single.index
        for name in STATES:
            states = getattr(batch, name).items()
            own = {i: None if t is None else t[row : row + 1].clone() for i, t in states}
            setattr(single, name, own)
        for name in STATE_FLAGS:
            setattr(single, name, dict(getattr(batch, name)))
        parts.append(single)
    return parts
