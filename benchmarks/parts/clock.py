"""Times of tokens: members alone under transformers' own `generate`, and packs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from transformers.generation.streamers import BaseStreamer

from packfuse import Pack
from packfuse.generation.runner import Runner
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary

T = TypeVar("T")


def exactly(tokens: int) -> dict[str, Any]:
    """Arguments for a greedy answer of that many tokens."""
    return {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until the first token of an answer, and the median of those between tokens."""

    first: float
    step: float


class Clock(BaseStreamer):
    """Records the time of each token; the clock starts when it is made."""

    def __init__(self) -> None:
        """Start the clock."""
        self.started = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Record the prompt, then one token of every sequence at a time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last token was recorded."""

    @property
    def timing(self) -> Timing:
        """The times that were recorded; at least two tokens are needed."""
        tokens = self.times[1:]
        gaps = [after - before for before, after in pairwise(tokens)]
        return Timing(tokens[0] - self.started, statistics.median(gaps))


def prompt_ids(vocabulary: Vocabulary, prompt: str) -> list[int]:
    """The token ids of a plain prompt."""
    text = vocabulary.text_prefix + prompt.encode()
    return [*vocabulary.prefix_ids, *vocabulary.encode_bytes(text)]


def alone(member: HFMember, prompts: Sequence[str], tokens: int, **settings: Any) -> Timing:
    """One member under transformers' own `generate`, prompts left-padded."""
    clock = Clock()
    rows = [prompt_ids(member.vocabulary, prompt) for prompt in prompts]
    longest, pad = max(map(len, rows)), member.vocabulary.end_ids[0]
    pads = [longest - len(row) for row in rows]
    ids = [[pad] * n + row for n, row in zip(pads, rows, strict=True)]
    mask = [[0] * n + [1] * (longest - n) for n in pads]
    model: Any = member.model
    model.generate(
        torch.tensor(ids, device=member.device),
        attention_mask=torch.tensor(mask, device=member.device),
        pad_token_id=pad,
        streamer=clock,
        **exactly(tokens),
        **settings,
    )
    return clock.timing


def fused(pack: Pack, prompts: Sequence[str], tokens: int, **settings: Any) -> Timing:
    """The pack; fitting weights to the prompts is part of the first token's time."""
    clock = Clock()
    # The one place where benchmarks use what is not public: no public call takes a streamer.
    Runner(pack.runtime, pack.request(list(prompts), {**exactly(tokens), **settings})).run(clock)
    return clock.timing


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleave(contestants: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Run all in turn, each with the number of the round.

    Every other round runs backwards, so that drift of the machine cancels.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants.items())
        for name, run in reversed(order) if number % 2 else order:
            found[name].append(run(number))
    return found
