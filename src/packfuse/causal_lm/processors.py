"""Logits processors around those of a call: finite scores, and sampling with a seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from packfuse.errors import ConfigError
from packfuse.transfer import upload

FLOOR = -1e6
"""Score of impossible tokens for processors: finite, and far below that of any other token."""


class LevelFree(LogitsProcessor):
    """A processor that adding a constant to all scores of a row does not affect."""


class SeededChoice(LogitsProcessor):
    """Chooses the token by random numbers of its own; what samples afterwards has no choice left.

    The noise depends on the seed, on the number of the sequence among those of its prompt, and on
    the position in the answer, and on nothing else: other threads, other rows of a batch, padding
    and drafts do not change it. The token of the largest score plus Gumbel noise is distributed as
    a sample of the softmax.
    """

    def __init__(self, seed: int, prompts: int, prompt_length: int, first: int = 0) -> None:
        """Start before the answer.

        Args:
            seed: The seed of the call.
            prompts: Number of prompts in the batch.
            prompt_length: Number of tokens before the answer, left padding included.
            first: Number of the first sequence of each prompt.
        """
        self.seed, self.prompts, self.start, self.first = seed, prompts, prompt_length, first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """0 for the chosen token of each row and -inf for all others, `[B, V]`."""
        chosen = self.perturbed(input_ids.shape[1] - self.start, scores).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def perturbed(self, position: int, scores: Tensor) -> Tensor:
        """Scores plus noise, `[B, V]`."""
        each = max(len(scores) // self.prompts, 1)
        keys = [(self.seed, self.first + row % each, position) for row in range(len(scores))]
        noise = torch.stack([_gumbel(key, scores.shape[1]) for key in keys])
        return scores + upload(noise, scores.device, scores.dtype)


class FiniteScores(LogitsProcessorList):
    """The processors of a call, which get finite scores where the pack's are -inf.

    A difference of two infinite scores is not a number, and a greedy choice among such scores is
    meaningless. Tokens that the pack makes impossible stay impossible, unless a processor forbids
    all others.

    Attributes:
        choice: Chooses the token at the end; None to leave the choice to `generate`.
    """

    def __init__(self, processors: Iterable[Any] = (), choice: SeededChoice | None = None) -> None:
        """Wrap the processors of a call."""
        super().__init__(processors)
        self.choice = choice

    @property
    def shaping(self) -> FiniteScores:
        """The same without the choice."""
        return FiniteScores(self)

    def __bool__(self) -> bool:
        """Whether scores are changed at all."""
        return len(self) > 0 or self.choice is not None

    def __call__(self, input_ids: Tensor, scores: Tensor, **settings: Any) -> Tensor:
        """Processed scores `[B, V]`.

        Raises:
            ConfigError: if no token is left, or scores are not numbers.
        """
        shaped = self.shape(input_ids, scores, **settings) if len(self) else scores
        return self.choice(input_ids, shaped) if self.choice else shaped

    def shape(self, input_ids: Tensor, scores: Tensor, **settings: Any) -> Tensor:
        """The scores before the choice, `[B, V]`."""
        # Nearly all scores are finite, and one pass over them tells it; devices are not waited for.
        all_finite = scores.device.type == "cpu" and bool(torch.isfinite(scores.amin()))
        finite = scores if all_finite else scores.nan_to_num(torch.nan, torch.inf, FLOOR)
        try:
            processed: Any = super().__call__(input_ids, finite, **settings)  # type: ignore[arg-type]
        except OverflowError as error:
            raise self._error(f"overflow: {error}") from error
        impossible = None if all_finite else torch.isneginf(scores)
        masked: Tensor = (
            processed if impossible is None else processed.masked_fill(impossible, -torch.inf)
        )
        best = masked.amax(-1)
        if bool(torch.isfinite(best).all()):
            return masked
        forced: Tensor = torch.where(torch.isneginf(best)[:, None], processed, masked)
        best = forced.amax(-1)
        if bool(torch.isfinite(best).all()):
            return forced
        none = bool(torch.isneginf(best).any())
        raise self._error("allow no token" if none else "give scores that are not finite")

    def _error(self, what: str) -> ConfigError:
        names = ", ".join(dict.fromkeys(type(one).__name__ for one in self))
        return ConfigError(
            f"the logits processors of this call {what}",
            hint=f"change the arguments that they come from: {names}",
        )


def _gumbel(key: Sequence[int], size: int) -> Tensor:
    """Gumbel noise `[size]` from a stream of random numbers of its own."""
    words = [number % 2**64 for number in key]
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state))
    exponential = torch.empty(size).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()
