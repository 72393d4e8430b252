"""Forward passes whose tensors keep shape and address while rows grow, so that they compile."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from packfuse.hf_compat import models as hf_compat
from packfuse.hf_compat.models import attention_of
from packfuse.models.kv.ragged import MAX_IDLE_SHARE, ForwardBatch
from packfuse.models.kv.recurrent import with_class
from packfuse.models.kv.store import RowCache

MAX_NEW_TOKENS = 16
"""Most new tokens of a row; longer reads take a `RaggedBatch`."""

FULL, SLIDING = "full_attention", "sliding_attention"


class FixedShapeBatch(ForwardBatch):
    """A forward pass that writes a few new tokens of each row to the store that holds it.

    New tokens are written after the last token of their row, at whatever slot that is. Rows with
    fewer new tokens, and idle ones, are padded at the right; the next pass overwrites padding.
    Attention gets the whole store, and a mask hides the slots that do not belong to a row.
    """

    def __init__(
        self,
        empty: DynamicCache,
        config: PreTrainedConfig,
        row_caches: Sequence[RowCache],
        new: Sequence[int],
    ) -> None:
        """Plan the pass, for rows of which `can_read` is True.

        Args:
            empty: An empty cache of the model.
            config: The model's configuration.
            row_caches: The rows.
            new: Number of new tokens of each row.

        Raises:
            ValueError: if the first row has no store yet.
        """
        store = row_caches[0].store
        if store is None:
            raise ValueError("rows that have read no tokens have no KV store")
        self.row_caches, self._new, self._store = list(row_caches), list(new), store
        self._config = config.get_text_config()
        self.width, self.size, self.rows = (
            max(new),
            store.rows,
            [row_cache.row for row_cache in row_caches],
        )
        self._starts, self._ends, self._read = ([0] * self.size for _ in range(3))
        for row_cache in (*store.row_caches, *row_caches):
            self._starts[row_cache.row] = row_cache.start
            self._ends[row_cache.row] = max(self._ends[row_cache.row], row_cache.end)
        for row, count in zip(self.rows, new, strict=True):
            self._read[row] = count
        store.zero_free_slots()
        # Set before the pass runs: a fork that ends at the same slot will copy.
        store.used = max(end + read for end, read in zip(self._ends, self._read, strict=True))
        self.cache = copy.copy(empty)
        self._layers: list[WholeStoreLayer] = [
            with_class(WholeStoreLayer, layer) for layer in empty.layers
        ]
        for index, layer in enumerate(self._layers):
            layer.keys, layer.values = store.layer(index)
        self.cache.layers = list(self._layers)

    def flat_positions(self, which: int, positions: Sequence[int]) -> list[int]:
        """See `ForwardBatch`."""
        return [self.rows[which] * self.width + position for position in positions]

    def inputs(
        self, ids: Sequence[Sequence[int]], device: torch.device, *, positions: bool
    ) -> dict[str, Any]:
        """See `ForwardBatch`."""
        padded = [[0] * self.width for _ in range(self.size)]
        for row, new in zip(self.rows, ids, strict=True):
            padded[row][: len(new)] = new
        counts = torch.tensor([self._starts, self._ends, self._read], device=device)
        starts, ends, read = counts.unbind()
        slots = ends[:, None] + torch.arange(self.width, device=device)
        rows = torch.arange(self.size, device=device)
        padding = slots >= (ends + read)[:, None]
        for layer in self._layers:
            layer.rows, layer.slots, layer.padding = rows, slots, padding
            for tensor in (layer.keys, layer.values):
                mark_dynamic(tensor, 0, 2)
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": attention_masks(
                self._config, slots, starts, self._store.slots, self._store.layer(0)[0].dtype
            ),
        }
        if positions:
            # Positions of padding are limited, for models with a table of positions.
            last = (ends + read - 1)[:, None]
            inputs["position_ids"] = (torch.minimum(slots, last) - starts[:, None]).clamp(min=0)
        mark_dynamic(rows, 0)
        for value in (slots, padding, *inputs.values()):
            for tensor in value.values() if isinstance(value, dict) else [value]:
                mark_dynamic(tensor, 0, -2, -1)
        return {**inputs, "use_cache": True}

    def finish(self) -> None:
        """See `ForwardBatch`."""
        for row_cache, count in zip(self.row_caches, self._new, strict=True):
            row_cache.length += count
        self.cache.layers, self._layers = [], []


def attention_masks(
    config: Any, slots: Tensor, starts: Tensor, total: int, dtype: torch.dtype
) -> Any:
    """Attention masks, in the form that the model's attention implementation takes.

    Args:
        config: The model's text configuration.
        slots: Slots of the new tokens, `[B, n]`.
        starts: First slots of the rows, `[B]`.
        total: Number of slots that attention gets.
        dtype: Type of keys and values.

    Returns:
        A mask `[B, 1, n, total]`; a dict of masks by layer type where the configuration names
        layer types.
    """
    indices = torch.arange(total, device=slots.device)
    # No views of views: the compiler would treat the sizes of their bases as constants.
    first, last = starts[:, None, None, None], slots[:, None, :, None]
    visible = (indices >= first) & (indices <= last)
    window = getattr(config, "sliding_window", None)
    masks = {FULL: visible}
    if window is not None:
        masks[SLIDING] = visible & (indices > last - window)
    if attention_of(config) == "eager":
        least = torch.finfo(dtype).min
        for kind, mask in masks.items():
            fresh = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            masks[kind] = fresh.masked_fill(~mask, least)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return masks[FULL if window is None else SLIDING]
    return {kind: masks[kind] for kind in set(kinds)}


def unsupported_reason(
    empty: DynamicCache, config: PreTrainedConfig, attention: str | None = None
) -> str | None:
    """Why a model cannot run in passes of fixed shape (its cache, its attention), or None.

    Args:
        empty: An empty cache of the model.
        config: The model's configuration.
        attention: Its attention implementation, if it will be another one than the configuration
            names.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {FULL, SLIDING}
    layers = {type(layer) for layer in empty.layers} - {DynamicLayer}
    if kinds or layers:
        names = sorted(kinds) or sorted(layer.__name__ for layer in layers)
        return f"it has layers of the kind {', '.join(names)}"
    windows = {getattr(layer, "sliding_window", None) for layer in empty.layers}
    if not windows <= {None, getattr(text, "sliding_window", None)}:
        return "its layers have different sliding windows"
    attention = attention or attention_of(text) or "sdpa"
    if attention not in ("sdpa", "eager"):
        return f"its attention is {attention!r}, neither 'sdpa' nor 'eager'"
    return None


def can_read(row_caches: Sequence[RowCache], new: Sequence[int]) -> bool:
    """Whether rows can read `new` tokens each in a `FixedShapeBatch`.

    They have to be rows of one store with enough free slots, most of the store's rows, and none of
    them may be shorter than a fork of it in the same row.
    """
    store, width, rows = row_caches[0].store, max(new), {row_cache.row for row_cache in row_caches}
    if (
        store is None
        or width > MAX_NEW_TOKENS
        or any(row_cache.store is not store for row_cache in row_caches)
    ):
        return False
    if len(rows) < len(row_caches) or len(rows) < (1 - MAX_IDLE_SHARE) * store.rows:
        return False
    ends = [0] * store.rows
    for row_cache in store.row_caches:
        ends[row_cache.row] = max(ends[row_cache.row], row_cache.end)
    # The tokens of a longer fork must not be overwritten.
    return max(ends) + width <= store.slots and all(
        row_cache.end == ends[row_cache.row] for row_cache in row_caches
    )


def mark_dynamic(tensor: Tensor, *dims: int) -> None:
    """Mark sizes that will change between calls; sizes of 1 are left to the compiler."""
    for dim in {range(tensor.dim())[dim] for dim in dims}:
        if tensor.shape[dim] > 1:
            hf_compat.mark_dynamic(tensor, dim)


class WholeStoreLayer(DynamicLayer):
    """An attention layer that writes to its store and returns all slots of it."""

    is_compileable = True
    keys: Tensor
    values: Tensor
    rows: Tensor
    slots: Tensor
    padding: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values to their slots; return those of all slots."""
        # Keys and values of padding may be NaN, which no mask hides: zeros are written instead.
        padding = self.padding[:, :, None, None]
        for stored, fresh in ((self.keys, key_states), (self.values, value_states)):
            new = fresh.transpose(1, 2).masked_fill(padding, 0)
            stored[self.rows[:, None], :, self.slots] = new
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of slots that attention gets (all), and number of slots before them (0)."""
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> Any:
        """First new slot, as a tensor: the compiler would treat an int as a constant."""
        return self.slots.min()
