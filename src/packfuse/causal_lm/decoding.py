"""What transformers' `generate` prepares for one sequence, for a loop that decodes many at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.model import FusedForCausalLM
from packfuse.causal_lm.normalizers import log_normalizers
from packfuse.models.logps import best_tokens, sampled_tokens
from packfuse.transfer import download


@dataclass(frozen=True, slots=True)
class Prepared:
    """The parts of `generate` that a call's arguments decide.

    Attributes:
        settings: The generation settings in force.
        processors: The logits processors of the arguments and of the caller.
        criteria: The stopping criteria: length, end tokens, and those of the caller.
    """

    settings: GenerationConfig
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList

    @classmethod
    def of(
        cls, model: FusedForCausalLM, ids: Tensor, cache: FusedCache, arguments: dict[str, Any]
    ) -> Prepared:
        """What `generate` prepares for a call with these arguments, whose prompt has been read.

        Args:
            model: The pack.
            ids: The prompt, `[1, n]`.
            cache: The cache of the call.
            arguments: Arguments of `generate` for greedy decoding or sampling.
        """
        found: list[Prepared] = []

        # `generate` hands what it has prepared to such a function, in place of its own loop.
        def take(
            _: Any,
            input_ids: Tensor,
            *,
            logits_processor: LogitsProcessorList,
            stopping_criteria: StoppingCriteriaList,
            generation_config: GenerationConfig,
            **__: Any,
        ) -> Tensor:
            found.append(cls(generation_config, logits_processor, stopping_criteria))
            return input_ids

        model.generate(ids, cache=cache, custom_generate=take, **arguments)
        return found[0]


class Decoder:
    """Chooses the tokens of one sequence, as the loop of transformers for greedy and sampling does.

    The caller advances the sequence by `last` and hands its distribution to `take`, until `done`.

    Attributes:
        cache: The cache of the call, with its sequence.
        ids: The prompt and the answer so far, `[1, n]`, on the host.
        done: Whether the answer has ended.
    """

    def __init__(self, ids: Tensor, cache: FusedCache, prepared: Prepared) -> None:
        """Start at the end of a prompt that has been read.

        Args:
            ids: The prompt, `[1, n]`.
            cache: The cache of the call, with its prompt.
            prepared: What `generate` prepares.
        """
        self.cache, self._prepared, self.done = cache, prepared, False
        self.ids = ids.cpu()
        # Logits processors get the ids where the scores are.
        self._ids_there = None if ids.device.type == "cpu" else ids
        self._scores: Tensor | None = None
        cache.sequences, cache.prompts = cache.prompts, []
        cache.length = ids.shape[1] - 1

    @property
    def last(self) -> int:
        """The last token."""
        return int(self.ids[0, -1])

    def take(self, logps: Tensor) -> Tensor:
        """Choose the next token, and wait until it is on the host.

        Args:
            logps: The fused log-probabilities after the last token, `[V]`, nats.

        Returns:
            The token, `[1]`, on the host.
        """
        return self.accept(download([self.choose(logps)])[0])

    @torch.no_grad()
    def choose(self, logps: Tensor) -> Tensor:
        """Choose the next token, without waiting for the device; `accept` follows.

        Args:
            logps: The fused log-probabilities after the last token, `[V]`, nats.

        Returns:
            The token, `[1]`, where the log-probabilities are.
        """
        cache, settings = self.cache, self._prepared.settings
        cache.length += 1
        scores = logps[None].clone()  # processors may change it in place
        if cache.add_log_normalizers:
            scores = scores + log_normalizers(cache.sequences, 1, scores.device)[:, -1]
        processors: Any = self._prepared.processors
        scores = processors(self.ids if self._ids_there is None else self._ids_there, scores)
        token = sampled_tokens(scores.softmax(-1)) if settings.do_sample else best_tokens(scores)
        if self._ids_there is not None and processors:
            self._ids_there = torch.cat([self._ids_there, token[:, None]], 1)
        self._scores = scores
        return token

    def accept(self, chosen: NDArray[np.int64]) -> Tensor:
        """Add the token that was chosen.

        Args:
            chosen: The token, `[1]`, on the host.

        Returns:
            The same as a tensor.
        """
        token, scores = torch.from_numpy(chosen), self._scores
        self._scores = None
        self.ids = torch.cat([self.ids, token[:, None]], 1)
        criteria: Any = self._prepared.criteria
        self.done = bool(criteria(self.ids, scores).all())
        return token
