"""Private names of transformers' `generate`: what it derives, checks, and lets a model override.

`packfuse.hf_compat.models` says which versions are tested.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.utils import GENERATION_MODES_MAPPING

from packfuse.hf_compat.models import CACHE


def generation_settings(
    model: Any, config: GenerationConfig | None, arguments: Mapping[str, Any], ids: Tensor
) -> GenerationConfig:
    """The settings that `generate` derives from a configuration and its other arguments."""
    mixin: Any = GenerationMixin
    settings: GenerationConfig
    settings, _ = mixin._prepare_generation_config(model, config, **arguments)
    masked = arguments.get("attention_mask") is not None
    mixin._prepare_special_tokens(model, settings, masked, device=ids.device, batch_size=len(ids))
    return settings


def generation_mask(model: Any, ids: Tensor, settings: GenerationConfig) -> Tensor:
    """The attention mask that `generate` makes for ids without a mask."""
    mask: Tensor = model._prepare_attention_mask_for_generation(ids, settings, {})
    return mask


def end_and_pad_ids(settings: GenerationConfig) -> frozenset[int]:
    """End-of-sequence and padding ids of settings from `generation_settings`."""
    tensors = (settings._eos_token_tensor, settings._pad_token_tensor)
    return frozenset(i for ids in tensors if ids is not None for i in ids.flatten().tolist())


def decoding_optimized(model: nn.Module) -> AbstractContextManager[Any]:
    """The context in which `generate` runs a model's decoding steps (kernels for experts)."""
    optimized: Callable[[], AbstractContextManager[Any]]
    optimized = getattr(model, "_optimize_model_for_decode", nullcontext)
    return optimized()


def built_processors(model: Any, settings: GenerationConfig, ids: Tensor) -> LogitsProcessorList:
    """The logits processors that `generate` builds from settings of `generation_settings`."""
    mixin: Any = GenerationMixin
    found: LogitsProcessorList = mixin._get_logits_processor(
        model, settings, ids.shape[1], ids, device=ids.device, model_kwargs={}
    )
    return found


def check_generation(
    model: Any, settings: GenerationConfig, arguments: Mapping[str, Any]
) -> str | None:
    """Raise what `generate` raises for arguments that do not fit each other.

    Args:
        model: The model.
        settings: Settings from `generation_settings`.
        arguments: The other arguments of `generate`.

    Returns:
        The repository whose code `generate` would run in this mode; None for none.
    """
    assistant = arguments.get("assistant_model")
    mode = settings.get_generation_mode(assistant)
    method = GENERATION_MODES_MAPPING[mode]
    if "/" in method:
        return str(method)
    extra = ("assistant_model", "streamer", "tokenizer", "assistant_tokenizer")
    model._validate_generation_mode(
        mode, settings, {n: arguments[n] for n in extra if arguments.get(n) is not None}
    )
    return None


def unused_arguments(
    model: Any, settings: GenerationConfig, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Those arguments of `generate` that are neither settings nor named in its signature."""
    named = {*inspect.signature(GenerationMixin.generate).parameters, *vars(settings)}
    extra = ("tokenizer", "assistant_tokenizer", "continuous_batching_config")
    return {k: v for k, v in arguments.items() if k not in named and k not in extra}


def guidance_of(processors: LogitsProcessorList) -> Any:
    """The processor of classifier-free guidance; None if there is none."""
    kind = UnbatchedClassifierFreeGuidanceLogitsProcessor
    return next((one for one in processors if isinstance(one, kind)), None)


class BeamNoise(Protocol):
    """Noise with which beams are sampled."""

    def perturbed(self, position: int, scores: Tensor) -> Tensor:
        """Scores `[B, n]` plus noise, at a position of the answer."""


_beam_noise: ContextVar[BeamNoise | None] = ContextVar("beam_noise", default=None)


@contextmanager
def beam_noise(noise: BeamNoise | None) -> Iterator[None]:
    """A context in which `generate` samples beams by this noise, in this thread."""
    token = _beam_noise.set(noise)
    try:
        yield
    finally:
        _beam_noise.reset(token)


class GenerationHooks:
    """Mixin with the private methods of `generate` that a fused model overrides.

    It comes before `GenerationMixin` among the bases of a class.
    """

    def own_candidate_generator(
        self, cache: Any, settings: GenerationConfig, processors: Any
    ) -> CandidateGenerator | None:
        """The candidate generator of speculative decoding; None for the one of `generate`.

        Args:
            cache: The KV cache of the call.
            settings: The generation settings of the call.
            processors: Logits processors of the call.
        """
        raise NotImplementedError

    def limit_candidates(self, cache: Any, generator: CandidateGenerator) -> None:
        """Called with every candidate generator, to leave out candidates without room, in place."""
        raise NotImplementedError

    def own_processors(
        self, cache: Any, settings: GenerationConfig, processors: LogitsProcessorList, start: int
    ) -> LogitsProcessorList:
        """The logits processors of a call, from those of `generate` and its caller.

        Args:
            cache: The KV cache of the call.
            settings: The generation settings of the call.
            processors: The processors.
            start: Length of the prompt, padding included.
        """
        raise NotImplementedError

    def shaping_processors(self, processors: Any) -> Any:
        """Those that shape the scores, without a choice of the token."""
        raise NotImplementedError

    def decoding_models(self) -> Sequence[nn.Module]:
        """The models that run at every decoding step."""
        raise NotImplementedError

    def _get_candidate_generator(self, *_: Any, **given: Any) -> Any:
        cache, processors = given["model_kwargs"][CACHE], given["logits_processor"]
        generator = self.own_candidate_generator(cache, given["generation_config"], processors)
        if generator is None:
            mixin: Any = super()
            shaping = self.shaping_processors(processors)
            generator = mixin._get_candidate_generator(**{**given, "logits_processor": shaping})
        self.limit_candidates(cache, generator)
        return generator

    def _get_logits_processor(self, *args: Any, **given: Any) -> LogitsProcessorList:
        mixin: Any = super()
        named = inspect.signature(mixin._get_logits_processor).bind(*args, **given).arguments
        cache = (named.get("model_kwargs") or {}).get(CACHE)
        built = mixin._get_logits_processor(*args, **given)
        settings, start = named["generation_config"], named["input_ids_seq_length"]
        return self.own_processors(cache, settings, built, start)

    def _get_top_k_continuations(self, *_: Any, **given: Any) -> Any:
        mixin: Any = super()
        noise, scores = _beam_noise.get(), given["accumulated_log_probs"]
        if noise is None or not given["do_sample"]:
            return mixin._get_top_k_continuations(**given)
        # The largest of the scores plus Gumbel noise are samples without replacement.
        noisy = noise.perturbed(given["cur_len"] - given["decoder_prompt_len"], scores)
        changes = {"accumulated_log_probs": noisy, "do_sample": False}
        _, *rest = mixin._get_top_k_continuations(**{**given, **changes})
        return scores.gather(1, noisy.topk(given["beams_to_keep"]).indices), *rest

    def decoding_context(self) -> AbstractContextManager[Any]:
        """The context of decoding steps, which `generate` enters by itself."""
        return self._optimize_model_for_decode()

    @contextmanager
    def _optimize_model_for_decode(self) -> Iterator[None]:
        with ExitStack() as stack:
            for model in self.decoding_models():
                stack.enter_context(decoding_optimized(model))
            yield
