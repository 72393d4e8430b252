"""Ends the sequences of `generate` for which a member's context window has no more room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import StoppingCriteria

from packfuse.fusion.room import overflow
from packfuse.fusion.sequence import PackSequence

Candidates = tuple[Tensor, Tensor | None]
"""Ids with drafted tokens at their end, `[1, n]`, and the scores of these tokens or None."""


class Full(NamedTuple):
    """An answer that ended because a member had no more room.

    Attributes:
        length: Length of the answer, in tokens.
        member: Name of the member.
        window: The member's context window, in tokens.
    """

    length: int
    member: str
    window: int

    def __str__(self) -> str:
        """As a note for the record."""
        return (
            f"the answer ended after {self.length} tokens: member {self.member!r} has no more room "
            f"in its context window of {self.window} tokens"
        )


class CallCache(Protocol):
    """What is used of a `FusedCache`, which holds the criteria."""

    sequences: list[PackSequence]
    prompts: list[PackSequence]
    length: int
    endings: frozenset[int]
    ends_when_full: bool


class WindowCriteria(StoppingCriteria):
    """Ends a sequence whose last token some member could not read any more.

    That token stays in the answer: to choose it, nothing had to be read after it.
    """

    def __init__(self, cache: CallCache, prompts: int, prompt_length: int) -> None:
        """Watch one call of `generate`.

        Args:
            cache: The sequences of the call.
            prompts: Number of prompts.
            prompt_length: Number of tokens before the answers, left padding included.
        """
        self.cache, self.prompts, self.start = cache, prompts, prompt_length
        self._full: list[dict[tuple[int, ...], Full]] = [{} for _ in range(prompts)]

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which sequences are done, `[B]`."""
        self.cache.ends_when_full = True
        rows = input_ids[:, self.start :].tolist()
        bases = self._bases(rows)
        done = [
            self._is_full(index * self.prompts // len(rows), row, base)
            for index, (row, base) in enumerate(zip(rows, bases, strict=True))
        ]
        return torch.tensor(done, device=input_ids.device)

    def _is_full(self, prompt: int, row: list[int], base: PackSequence | None) -> bool:
        if self.full(prompt, row):
            return True
        if base is None or row[-1] in self.cache.endings:
            return False
        over = overflow(base, row[self._read :])
        if over is not None:
            member = over.member
            self._full[prompt][tuple(row)] = Full(len(row), member.name, member.context_window)
        return over is not None

    @property
    def _read(self) -> int:
        """How many tokens of the answers have been read."""
        return self.cache.length - self.start if self.cache.sequences else 0

    def _bases(self, rows: Sequence[list[int]]) -> list[PackSequence | None]:
        """For each row, the sequence that it continues; None if there is none yet."""
        sequences = self.cache.sequences or self.cache.prompts
        if not sequences:
            return [None] * len(rows)
        if not self.cache.sequences or len(rows) == len(sequences):
            return [sequences[index * len(sequences) // len(rows)] for index in range(len(rows))]
        # Beam search asks for more continuations than there are sequences, in another order.
        read = self._read
        by_ids: list[dict[tuple[int, ...], PackSequence]] = [{} for _ in range(self.prompts)]
        for index, own in enumerate(sequences):
            ids = [*own.ids, *own.unread]
            by_ids[index * self.prompts // len(sequences)][tuple(ids[len(ids) - read :])] = own
        return [
            by_ids[index * self.prompts // len(rows)].get(tuple(row[:read]))
            for index, row in enumerate(rows)
        ]

    def full(self, prompt: int, answer: Sequence[int]) -> Full | None:
        """Where an answer ended for want of room; None if it did not.

        Args:
            prompt: Index of its prompt.
            answer: Its ids, with anything after the end.
        """
        known = self._full[prompt].items()
        return next((full for ids, full in known if tuple(answer[: len(ids)]) == ids), None)

    def pad(self, generated: Any, pad_id: int | None) -> list[str]:
        """Write padding after the answers that ended for want of room, in place.

        Args:
            generated: What `generate` returned: ids `[B, n]`, or an output with `sequences`.
            pad_id: The padding; None to leave what is there.

        Returns:
            A note for each of these answers, without repetitions.
        """
        notes: dict[str, None] = {}
        if not any(self._full):
            return []
        sequences = generated if isinstance(generated, Tensor) else generated.sequences
        for index, row in enumerate(sequences[:, self.start :].tolist()):
            full = self.full(index * self.prompts // len(sequences), row)
            if full is not None:
                notes[str(full)] = None
                if pad_id is not None:
                    sequences[index, self.start + full.length :] = pad_id
        return list(notes)

    def fitting(self, draft: Callable[..., Candidates]) -> Callable[..., Candidates]:
        """A function that drafts like another one, but only tokens that all members can read."""

        def drafted(input_ids: Tensor, *args: Any, **kwargs: Any) -> Candidates:
            ids, scores = draft(input_ids, *args, **kwargs)
            rows = ids[:, self.start :].tolist()
            (base,), (row,) = self._bases(rows), rows
            own, count = input_ids.shape[1], ids.shape[1]
            while base and count > own and overflow(base, row[self._read : count - self.start]):
                count -= 1
            scores = None if scores is None or count == own else scores[:, : count - own]
            return ids[:, :count], scores

        return drafted
