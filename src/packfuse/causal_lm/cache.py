"""The cache of a call: its sequences and settings, with the interface of transformers' caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.drafts.base import DraftStats
from packfuse.causal_lm.drafts.proposals import Proposals
from packfuse.causal_lm.room import WindowCriteria
from packfuse.fusion.sequence import PackSequence
from packfuse.hf_compat.models import RowsCache


class FusedCache(RowsCache):
    """The sequences of one call, and the settings of the call.

    `generate` measures, crops and reorders it like any other cache. Each `PackSequence` in turn has
    one session (KV cache) per member. Lengths are numbers of reference tokens, left padding
    included.

    Attributes:
        call: The settings of the call; None for the model's own.
        prompts: Prompts that have been read already. The first forward pass starts from their ends;
            each starts as many sequences as there are per prompt (beams, return sequences).
        prompt_count: Number of prompts at the start of the call.
        use_cache: Whether sequences stay between forward passes. If not, each pass reads everything
            after the prompts again.
        sequences: The sequences of the batch; empty before the first forward pass.
        length: Number of positions read so far.
        endings: Ids that end an answer.
        ends_when_full: Whether a sequence ends where a member has no more room, instead of raising
            an error: once an answer has begun.
        window: Ends the sequences of the running call that have no more room; None before a call.
        add_log_normalizers: Whether `forward` adds the log normalizers of the members' logits to
            the log-probabilities, so that these have the level of logits.
        draft_stats: Counts of drafted tokens; None if nothing was drafted.
        proposals: Notes which tokens were drafted; None to note nothing.
        weights: Weights `[K]` of each sequence that starts without a prompt; empty for those of
            `forward`.
        seed: Seed with which tokens are sampled; None for torch's global random numbers.
        number: Number of the first sequence among those of its prompt, for the seed.
        prepared: Whether `generate` is called by a `Runner`, which has checked the arguments and
            looked at the members' models.
        pause: Called before every forward pass after the first.
    """

    def __init__(
        self,
        call: CallSettings | None = None,
        prompts: Sequence[PackSequence] = (),
        *,
        use_cache: bool = True,
    ) -> None:
        """A cache without sequences; the first forward pass starts them."""
        super().__init__()
        self.call, self.use_cache = call, use_cache
        self.prompts = list(prompts)
        self.prompt_count = len(self.prompts)
        self.sequences: list[PackSequence] = []
        self.length = 0
        self.endings: frozenset[int] = frozenset()
        self.ends_when_full = False
        self.window: WindowCriteria | None = None
        self.add_log_normalizers = False
        self.draft_stats: DraftStats | None = None
        self.proposals: Proposals | None = None
        self.weights: list[Tensor | None] = []
        self.seed: int | None = None
        self.number = 0
        self.prepared = False
        self.pause: Callable[[], object] = int  # does nothing

    def start(self, count: int) -> list[PackSequence]:
        """`count` sequences at the ends of their prompts; none if there are no prompts.

        With `use_cache`, the prompts themselves are handed out once; otherwise copies of them.
        """
        if not self.prompts or count % len(self.prompts):
            return []
        each = count // len(self.prompts)
        sequences = [
            prompt if self.use_cache and not number else prompt.fork()
            for prompt in self.prompts
            for number in range(each)
        ]
        if self.use_cache:
            self.prompts = []
        return sequences

    def row_weights(self, count: int) -> list[Tensor | None]:
        """The weights of `count` sequences, each with those of its prompt."""
        known = self.sequences or self.prompts
        each = max(count // max(len(known), 1), 1)
        return [one.weights for one in known for _ in range(each)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions read so far."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no maximum. The members check their context windows when they read."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens of every sequence.

        Args:
            tokens_to_remove: Zero or a negative number, as in transformers 5.

        Raises:
            ValueError: for a positive number (transformers 4 passed the length to keep).
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes zero or a negative number, got {tokens_to_remove}")
        for sequence in self.sequences:
            sequence.crop(-tokens_to_remove)
        self.length += tokens_to_remove

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the sequences with their beams."""
        self._select(beam_idx.tolist())

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences at these indices."""
        self._select(indices.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._select([index for index in range(len(self.sequences)) for _ in range(repeats)])

    def _select(self, order: Sequence[int]) -> None:
        """Set the sequences to those at these indices; a repeated one is forked."""
        if not self.use_cache:
            return
        taken: set[int] = set()
        selected: list[PackSequence] = []
        for index in order:
            sequence = self.sequences[index]
            selected.append(sequence.fork() if index in taken else sequence)
            taken.add(index)
        self.sequences = selected

    @property
    def batch_size(self) -> int:
        """Number of sequences; -1 before the first forward pass."""
        return len(self.sequences) or -1

    def reset(self) -> None:
        """Remove all sequences."""
        self.sequences, self.length = [], 0

    def __len__(self) -> int:
        """1: the number of layers for transformers."""
        return 1

    def __repr__(self) -> str:
        """Number of sequences and length."""
        return f"FusedCache(sequences={len(self.sequences)}, length={self.length})"

    def __iter__(self) -> Any:
        """Not supported: there are no key and value tensors to iterate over.

        Raises:
            TypeError: always.
        """
        raise TypeError("a FusedCache has no key and value tensors of its own")
