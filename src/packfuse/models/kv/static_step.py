"""One step over a static store: every number that changes between steps is in one small tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from packfuse.models.kv.fixed_shape import WholeStoreLayer, attention_masks
from packfuse.models.kv.recurrent import with_class
from packfuse.models.kv.static_store import SCRATCH_SLOTS, StaticStore
from packfuse.models.kv.store import RowCache

Outputs = tuple[Tensor, ...]

Capture = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""Makes a function that repeats a step: it reads and writes the same tensors each time."""

Forward = Callable[[dict[str, Any], DynamicCache, Tensor], Outputs]
"""Runs a model on inputs, a cache, and the flat positions at which logits are wanted."""


class StaticStep:
    """A forward pass of the first rows of a static store, which read at most `width` new tokens.

    New tokens are written after the last token of their row. Padding, and all tokens of rows that
    rest, are written to slots that no row uses. Attention gets the whole store, and a mask hides
    the slots that do not belong to a row.
    """

    def __init__(
        self,
        store: StaticStore,
        rows: int,
        width: int,
        *,
        every: bool,
        empty: DynamicCache,
        config: PreTrainedConfig,
        positions: bool,
        device: torch.device,
    ) -> None:
        """Prepare the tensors that the step reads.

        Args:
            store: The store.
            rows: Number of its first rows that the step runs on.
            width: Most new tokens of a row.
            every: Whether logits are wanted after every token; if not, after each row's last one.
            empty: An empty cache of the model.
            config: The model's configuration.
            positions: Whether the model takes `position_ids`.
            device: Device of the model's inputs.
        """
        self.rows, self.width, self._every, self._positions = rows, width, every, positions
        self._config, self._slots = config.get_text_config(), store.slots
        with torch.inference_mode(False):
            self.numbers = torch.zeros(rows, width + 3, dtype=torch.long, device=device)
        self.cache = copy.copy(empty)
        self._layers: list[WholeStoreLayer] = [
            with_class(WholeStoreLayer, layer) for layer in empty.layers
        ]
        for index, layer in enumerate(self._layers):
            keys, values = store.layer(index)
            layer.keys, layer.values = keys[:rows], values[:rows]
        self.cache.layers = list(self._layers)
        self._replay: Callable[[], Outputs] | None = None

    def __call__(self, numbers: Tensor, forward: Forward, capture: Capture) -> Outputs:
        """Run the step.

        Args:
            numbers: See `step_numbers`, `[rows, width + 3]`; on the host, and pinned where that
                makes the copy asynchronous.
            forward: Runs the model. It must do the same each time, but for what its tensors hold.
            capture: Captures the step when it runs for the first time.

        Returns:
            What `forward` returns. The next step overwrites these tensors.
        """
        self.numbers.copy_(numbers, non_blocking=True)
        if self._replay is None:
            self._replay = capture(lambda: forward(*self._inputs()))
        return self._replay()

    def _inputs(self) -> tuple[dict[str, Any], DynamicCache, Tensor]:
        """The arguments of `Forward`, all made on the device from `numbers`."""
        device, width = self.numbers.device, self.width
        ids, counts = self.numbers[:, :width], self.numbers[:, width:]
        starts, ends, read = counts.unbind(1)
        columns = torch.arange(width, device=device)
        padding = columns >= read[:, None]
        slots = torch.where(padding, self._slots + columns, ends[:, None] + columns)
        rows = torch.arange(self.rows, device=device)
        for layer in self._layers:
            layer.rows, layer.slots, layer.padding = rows, slots, padding
        total = self._slots + SCRATCH_SLOTS
        dtype = self._layers[0].keys.dtype
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": attention_masks(self._config, slots, starts, total, dtype),
            "use_cache": True,
        }
        if self._positions:
            # Positions of padding are limited, for models with a table of positions.
            last = (ends + read - 1)[:, None]
            inputs["position_ids"] = (torch.minimum(slots, last) - starts[:, None]).clamp(min=0)
        if self._every:
            flat = torch.arange(self.rows * width, device=device)
        else:
            flat = rows * width + (read - 1).clamp(min=0)
        return inputs, self.cache, flat


def step_numbers(
    rows: int, width: int, row_caches: Sequence[RowCache], ids: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The numbers of a step by row of the store: new ids, padding, first slot, end, and count.

    Args:
        rows: Number of rows of the step.
        width: Most new tokens of a row.
        row_caches: The rows that read, before they have read.
        ids: The new ids of each of them.
    """
    numbers = [[0] * (width + 3) for _ in range(rows)]
    for row_cache, new in zip(row_caches, ids, strict=True):
        padded = [*new, *([0] * (width - len(new)))]
        numbers[row_cache.row] = [*padded, row_cache.start, row_cache.end, len(new)]
    return numbers


def finish_step(
    store: StaticStore, row_caches: Sequence[RowCache], ids: Sequence[Sequence[int]]
) -> None:
    """Update the rows after a step has been run."""
    for row_cache, new in zip(row_caches, ids, strict=True):
        row_cache.length += len(new)
    store.used = max(store.ends())
