"""Stopping criteria: stop strings in the text, cancellation, and why a row ended."""

from __future__ import annotations

import codecs
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from packfuse.process import EXITING
from packfuse.text.detokenizer import StopStrings
from packfuse.text.vocabulary import Vocabulary


class StopTextCriteria(StoppingCriteria):
    """Ends a sequence as soon as its generated text contains a stop string.

    The stop string may begin and end inside tokens.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], prompt_length: int) -> None:
        """Search the text after the prompt.

        Args:
            vocabulary: The reference's.
            stop: Stop strings, at least one.
            prompt_length: Number of tokens before the answer, left padding included.
        """
        self.stop, self.start = StopStrings(vocabulary, stop), prompt_length
        self.window = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which sequences are done, `[B]`."""
        first = max(self.start, input_ids.shape[1] - self.window)
        done = [self._ends(ids) for ids in input_ids[:, first:].tolist()]
        return torch.tensor(done, device=input_ids.device)

    def _ends(self, ids: Sequence[int]) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return self.stop.find(self.stop.decode(ids, decoder)) is not None


class RowEnds:
    """When and why rows of a batch ended before an end token and the maximum length.

    Attributes:
        lengths: Length at the end by row, prompt included.
        reasons: The reason by row.
        fired: The first reason of any row; None if there was none.
    """

    def __init__(self) -> None:
        """Start without ended rows."""
        self.lengths: dict[int, int] = {}
        self.reasons: dict[int, str] = {}
        self.fired: str | None = None

    def watch(self, criteria: StoppingCriteria, reason: str) -> StoppingCriteria:
        """The same criteria, which record the rows that they end, with a reason."""
        return _Watched(self, criteria, reason)

    def record(self, done: Tensor, length: int, reason: str) -> None:
        """Record the rows that are done, `[B]`, at a length."""
        for row in done.nonzero().flatten().tolist():
            self.fired = self.fired or reason
            if row not in self.lengths:
                self.lengths[row], self.reasons[row] = length, reason


class _Watched(StoppingCriteria):
    """Criteria that record the rows that they end."""

    def __init__(self, ends: RowEnds, criteria: StoppingCriteria, reason: str) -> None:
        self._ends, self._criteria, self._reason = ends, criteria, reason

    def __call__(self, input_ids: Tensor, scores: Any, **settings: Any) -> Tensor:
        """Which sequences are done, `[B]`."""
        ids = input_ids
        if self._reason == "criteria" and isinstance(scores, Tensor):
            # The caller's criteria may compare ids with tensors on the device of the model.
            ids = ids.to(scores.device)
        found: Any = self._criteria(ids, scores, **settings)
        done = torch.as_tensor(found, dtype=torch.bool, device=input_ids.device)
        done = done.expand(len(input_ids))
        self._ends.record(done, input_ids.shape[1], self._reason)
        return done


class CancelCriteria(StoppingCriteria):
    """Ends the sequences of prompts that were cancelled, and all when the interpreter ends.

    Attributes:
        lengths: By cancelled prompt, the length of its sequences at that time, prompt included.
    """

    def __init__(self, events: Sequence[threading.Event]) -> None:
        """Watch one event per prompt of the batch; a prompt may have several sequences."""
        self.events = list(events)
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which sequences are done, `[B]`."""
        for index, event in enumerate(self.events):
            if event.is_set() or EXITING.is_set():
                self.lengths.setdefault(index, input_ids.shape[1])
        done = torch.tensor([i in self.lengths for i in range(len(self.events))])
        done = done.to(input_ids.device)
        return done.repeat_interleave(len(input_ids) // len(done))
