"""The cache of a running call: sequences and settings, behind transformers' interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.drafts.base import DraftStats
from packfuse.fusion.sequence import PackSequence
from packfuse.hf_compat import RowsCache


class FusedCache(RowsCache):
    """What one call has read. Lengths count reference tokens, left padding included.

    `generate` crops, reorders and measures it like any other cache. It holds one `PackSequence` a
    row, which in turn holds one session a member. The settings of the call travel with it.

    Attributes:
        call: The settings of the call; None for the model's own.
        prompts: Prompts that have been read already: the first forward pass begins with them. Each
            serves as many rows as there are rows for a prompt (beams, return sequences).
        keep: Whether rows are kept from pass to pass; without, each pass reads all but the prompts.
        rows: One a sequence.
        seen: Reference positions read so far, left padding included.
        endings: Ids that end an answer.
        normalizers: Whether logits are wanted whose height is that of the members' logits, not
            normalized log-probabilities.
        draft_stats: Counts of the drafts; None if nothing was drafted.
    """

    def __init__(
        self,
        call: CallSettings | None = None,
        prompts: Sequence[PackSequence] = (),
        *,
        keep: bool = True,
    ) -> None:
        """An empty cache; the first forward pass fills it."""
        super().__init__()
        self.call, self.keep = call, keep
        self.prompts = list(prompts)
        self.rows: list[PackSequence] = []
        self.seen = 0
        self.endings: frozenset[int] = frozenset()
        self.normalizers = False
        self.draft_stats: DraftStats | None = None

    def begin(self, count: int) -> list[PackSequence]:
        """Sequences for `count` rows that are at the end of their prompts; empty without prompts.

        The prompts themselves are given away unless every pass needs them anew.
        """
        if not self.prompts or count % len(self.prompts):
            return []
        each = count // len(self.prompts)
        rows = [
            prompt if self.keep and not number else prompt.fork()
            for prompt in self.prompts
            for number in range(each)
        ]
        if self.keep:
            self.prompts = []
        return rows

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
        if not self.keep:
            return
        taken: set[int] = set()
        rows: list[PackSequence] = []
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
        """Refused: there are no tensors to iterate over.

        Raises:
            TypeError: always.
        """
        raise TypeError("a FusedCache has no key and value tensors of its own")
