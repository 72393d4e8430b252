"""The logits processors of a call: guidance, finite scores, and the choice of a seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.processors import FiniteScores, SeededChoice
from packfuse.hf_compat.generation import guidance_of
from packfuse.hf_compat.models import CACHE_NAMES


class Unconditional:
    """The pack as guidance calls it: without the prompt, under the weights of each row's prompt."""

    def __init__(self, model: Any, call: CallSettings, cache: FusedCache) -> None:
        """Guide the call of a cache; `call` has the settings of a cache without settings."""
        self._model, self._cache = model, cache
        self._call = replace(cache.call or call, observer=None, draft=None, full_support=True)

    def __call__(self, input_ids: Tensor, **settings: Any) -> Any:
        """The output of a forward pass; see transformers' processor for guidance."""
        given = [settings.pop(name, None) for name in CACHE_NAMES]
        cache = next((one for one in given if one is not None), None)
        if cache is None:
            cache = FusedCache(self._call)
            cache.weights = self._cache.row_weights(len(input_ids))
        return self._model(input_ids, cache=cache, **settings)


def processors_of_call(
    model: Any,
    call: CallSettings,
    cache: Any,
    settings: GenerationConfig,
    processors: LogitsProcessorList,
    start: int,
) -> LogitsProcessorList:
    """The processors of a call, with finite scores, guidance, and the choice of a seed.

    Args:
        model: The pack.
        call: Its settings.
        cache: The cache of the call.
        settings: The generation settings in force; with a seed, tokens are no longer sampled.
        processors: Those that transformers made, and the caller's.
        start: Length of the prompts, padding included.
    """
    if not isinstance(cache, FusedCache):
        return processors
    guidance = guidance_of(processors)
    if guidance is not None and guidance.model is model:
        guidance.model = Unconditional(model, call, cache)
    choice = None
    if cache.seed is not None and settings.do_sample and (settings.num_beams or 1) == 1:
        choice = SeededChoice(cache.seed, cache.prompt_count, start, cache.number)
        # The loop takes the largest score, and draws none of torch's global random numbers.
        settings.do_sample = False
    return FiniteScores(processors, choice) if processors or choice else processors
