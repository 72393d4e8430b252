"""The pack's cache: every member's own cache and own tokens, behind transformers' interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from packfuse.hf_compat import RowsCache
from packfuse.row import Row


class FusedCache(RowsCache):
    """A cache of rows. Lengths count reference tokens, left padding included.

    `generate` crops, reorders and measures it like any other cache; what it holds is one `Row` per
    sequence, which in turn holds one session per member.

    Attributes:
        rows: One a sequence.
        seen: Reference positions read so far, left padding included.
        endings: Ids after which a row of the running `generate` has nothing more to say.
    """

    def __init__(self) -> None:
        """An empty cache; the first forward pass fills it."""
        super().__init__()
        self.rows: list[Row] = []
        self.seen = 0
        self.endings: frozenset[int] = frozenset()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Reference positions read so far, left padding included."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No maximum of its own; the members' context windows are checked as they read."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row.

        Args:
            tokens_to_remove: Zero or a negative number, as transformers 5 asks for.

        Raises:
            ValueError: for a positive number (the absolute lengths of transformers 4).
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes zero or a negative number, got {tokens_to_remove}")
        for row in self.rows:
            row.crop(-tokens_to_remove)
        self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows follow their beams."""
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given rows."""
        self._select(indices.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._select([index for index in range(len(self.rows)) for _ in range(repeats)])

    def _select(self, order: Sequence[int]) -> None:
        """Put rows in a new order; a row that is wanted twice is forked."""
        taken: set[int] = set()
        rows: list[Row] = []
        for index in order:
            row = self.rows[index]
            rows.append(row.fork() if index in taken else row)
            taken.add(index)
        self.rows = rows

    @property
    def batch_size(self) -> int:
        """How many rows there are; -1 before the first forward pass."""
        return len(self.rows) or -1

    def reset(self) -> None:
        """Forget everything."""
        self.rows, self.seen = [], 0

    def __len__(self) -> int:
        """One layer, as far as others can tell."""
        return 1

    def __repr__(self) -> str:
        """For people."""
        return f"FusedCache(rows={len(self.rows)}, length={self.seen})"

    def __iter__(self) -> Any:
        """There are no tensors to hand out.

        Raises:
            TypeError: always.
        """
        raise TypeError("a FusedCache has no key and value tensors of its own")
