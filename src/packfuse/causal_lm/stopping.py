"""Reasons to stop that transformers does not have."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from packfuse.text.vocabulary import Vocabulary


class StopTextCriteria(StoppingCriteria):
    """Ends a row as soon as its generated text holds a stop string, wherever tokens end."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], prompt_length: int) -> None:
        """`prompt_length` counts left padding; the prompt is not searched."""
        self.vocabulary, self.start = vocabulary, prompt_length
        self.stop = [text.encode() for text in stop]
        self.reach = max(map(len, self.stop)) + 1

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows are done, `[B]`."""
        first = max(self.start, input_ids.shape[1] - self.reach)
        tails = [self.vocabulary.decode(ids) for ids in input_ids[:, first:].tolist()]
        done = [any(stop in tail for stop in self.stop) for tail in tails]
        return torch.tensor(done, device=input_ids.device)


class CancelCriteria(StoppingCriteria):
    """Ends the rows whose callers have lost interest."""

    def __init__(self, events: Sequence[threading.Event]) -> None:
        """`events` by prompt, set to cancel; a prompt may have several rows."""
        self.events = list(events)
        self.lengths: dict[int, int] = {}
        """How long the rows of a prompt were when it was cancelled, with their prompts."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Which rows are done, `[B]`."""
        for index, event in enumerate(self.events):
            if event.is_set():
                self.lengths.setdefault(index, input_ids.shape[1])
        done = torch.tensor([i in self.lengths for i in range(len(self.events))])
        done = done.to(input_ids.device)
        return done.repeat_interleave(len(input_ids) // len(done))
