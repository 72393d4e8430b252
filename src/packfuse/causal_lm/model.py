"""The pack as a transformers model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.call_processors import processors_of_call
from packfuse.causal_lm.checks import (
    NOT_READ,
    UnsupportedMethods,
    check_arguments,
    check_processing,
    check_settings,
    checked_cache,
    forbids_tokens,
    settings_in_force,
    single_pad_id,
    unpadded,
    wants_logits,
)
from packfuse.causal_lm.config import FusedConfig, fused_config, fused_generation_config
from packfuse.causal_lm.copies import SharedMembers
from packfuse.causal_lm.drafts.base import DraftContext
from packfuse.causal_lm.normalizers import log_normalizers
from packfuse.causal_lm.processors import SeededChoice
from packfuse.causal_lm.reference import OfReference
from packfuse.causal_lm.room import WindowCriteria
from packfuse.errors import PromptError, UnsupportedError
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.hf_compat.generation import (
    GenerationHooks,
    beam_noise,
    end_and_pad_ids,
    generation_mask,
)
from packfuse.hf_compat.models import CACHE, causal_output, name_cache
from packfuse.text.prompt import blank, from_ids
from packfuse.weighting.prefill import prefill
from packfuse.weighting.prefix_cache import PrefixCache

_generate: Any = GenerationMixin.generate
_GENERATE = inspect.signature(_generate)


class FusedForCausalLM(
    OfReference,
    SharedMembers,
    UnsupportedMethods,
    GenerationHooks,
    PreTrainedModel,
    GenerationMixin,
):
    """A pack as one causal language model, over the reference's vocabulary.

    `generate`, pipelines and lm-eval use it like any other model. `forward` returns fused
    log-probabilities as its logits. `generate` fits the weights to each prompt. `forward` alone
    fits no weights, because a likelihood must not depend on the tokens that follow.

    Attributes:
        members: The models of members in this process; the reference's comes first.
        engine: The members, paired with the reference.
        call: The settings of a call without settings. A call passes its settings in a `FusedCache`,
            as the argument `cache`.
        prefixes: The prefix cache; None for none.
    """

    config_class = FusedConfig
    base_model_prefix = "packfuse"
    main_input_name = "input_ids"

    def __init__(
        self, engine: Engine, call: CallSettings, prefixes: PrefixCache | None = None
    ) -> None:
        """Wrap an engine."""
        reference = engine.members[engine.reference_index]
        super().__init__(fused_config(engine, reference))
        # The reference comes first: transformers takes a model's device from its first parameter.
        others = [member for member in engine.members if member is not reference]
        models = [member.model for member in [reference, *others] if member.model is not None]
        # Without a model in this process, a parameter without content says that it computes here.
        self.members = nn.ModuleList(models or [nn.ParameterList([torch.empty(0)])])
        self.engine, self.call, self.prefixes = engine, call, prefixes
        self.generation_config = fused_generation_config(reference)
        # Pipelines do not move a model that has a device map.
        self.hf_device_map = {"": self.device}
        self.training = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: FusedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        past_key_values: FusedCache | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Fused next-token log-probabilities.

        Args:
            input_ids: Reference ids `[B, n]`; with a cache, only those that have not been read.
            attention_mask: `[B, past + n]`; zeros are allowed on the left of a row, or of the new
                part of a row, only.
            cache: The sequences read so far, and the settings of the call.
            use_cache: False to return no cache.
            logits_to_keep: Number of last positions to return; 0 for all.
            return_dict: False for a tuple.
            labels: Not supported: a pack cannot be trained.
            past_key_values: The name of `cache` in transformers before 5.24.
            others: What `generate` passes besides, without effect.

        Returns:
            `logits` `[B, kept, V]`: normalized log-probabilities, nats, float32; zeros at positions
            of padding.

        Raises:
            UnsupportedError: for labels, outputs of layers, inputs that are not ids, or another
                kind of cache.
            PromptError: for a mask with zeros elsewhere, or a context that is too long.
        """
        for name, value in {**others, "labels": labels}.items():
            if name in NOT_READ and value is not None and value is not False:
                raise UnsupportedError(
                    f"a pack cannot honor {name}: it reads ids, and has no loss and no layers",
                    hint=f"leave out `{name}`",
                )
        cache = checked_cache(past_key_values if cache is None else cache)
        call = cache.call or self.call
        columns = input_ids.shape[1]
        texts = unpadded(input_ids, attention_mask)
        keep = min(logits_to_keep or columns, columns)
        sequences = cache.sequences
        if sequences:
            cache.pause()
            logits = self._advance(sequences, texts, keep, call, cache)
        else:
            sequences, logits = self._start(texts, keep, call, cache)
        if cache.add_log_normalizers:
            logits = logits + log_normalizers(sequences, keep, self.device)
        if cache.use_cache:
            cache.sequences = sequences
            cache.length += columns
        returned = None if use_cache is False else cache
        output = causal_output(logits, returned)
        return output.to_tuple() if return_dict is False else output

    def _start(
        self, texts: list[list[int]], keep: int, call: CallSettings, cache: FusedCache
    ) -> tuple[list[PackSequence], Tensor]:
        """Start the sequences of a cache: from the ends of prepared prompts, or from nothing.

        Args:
            texts: The ids of each sequence, prompt included.
            keep: Number of last positions to return.
            call: The settings of the call.
            cache: The cache, which may have prepared prompts.

        Returns:
            The sequences, and log-probabilities `[B, keep, V]`, nats.
        """
        if not cache.prompts:
            self.engine.refresh()
        sequences = cache.start(len(texts))
        rest = [text[own.length :] for text, own in zip(texts, sequences, strict=False)]
        self.engine.read_again([own for own in sequences if own.is_stale], call)
        if not sequences or keep > 1 + min(map(len, rest)):
            known = cache.weights or [call.forward_weights] * len(texts)
            weights = [one.weights for one in sequences] or known
            sequences = [self._empty_sequence(call, own) for own in weights]
            return sequences, self._advance(sequences, texts, keep, call, cache)
        first = self._after_prompts(sequences, call)
        if not rest[0]:
            return sequences, first
        count = len(rest[0])
        # Without a cache, a gate that looks back decides on the whole answer anew.
        wanted = count if call.gate.looks_back else min(keep, count)
        later = self._advance(sequences, rest, wanted, call, cache)
        return sequences, torch.cat([first, later], 1) if keep > count else later[:, -keep:]

    def _after_prompts(self, sequences: Sequence[PackSequence], call: CallSettings) -> Tensor:
        """The fused log-probabilities after prepared prompts, `[B, 1, V]`, nats."""
        found = []
        for index, sequence in enumerate(sequences):
            sequence.row = index
            fused, members = sequence.fused_logps, sequence.member_logps
            if fused is None:
                continue
            found.append(fused)
            if call.observer and members is not None:
                # This position was fused when the prompt was prepared, without an observer.
                count = len(sequence.ids)
                call.observer(sequence, FusedPosition(count, members, fused, sequence.is_fused))
        return torch.stack(found)[:, None]

    def _advance(
        self,
        sequences: list[PackSequence],
        texts: list[list[int]],
        keep: int,
        call: CallSettings,
        cache: FusedCache,
    ) -> Tensor:
        """Read new ids in every sequence.

        Returns:
            Log-probabilities after the last `keep` positions, `[B, keep, V]`, nats.
        """
        if keep <= min(map(len, texts)):
            return self.engine.advance(
                sequences,
                texts,
                call,
                keep,
                endings=cache.endings,
                ends_when_full=cache.ends_when_full,
                save_states=keep > 1,
            )
        # Positions of padding have no distribution: they get zeros, and the mask excludes them.
        found = []
        for sequence, text in zip(sequences, texts, strict=True):
            logits = self.engine.advance([sequence], [text], call, min(keep, len(text)))[0]
            found.append(nn.functional.pad(logits, (0, 0, keep - len(logits), 0)))
        return torch.stack(found)

    def _empty_sequence(self, call: CallSettings, weights: Tensor | None) -> PackSequence:
        """An empty sequence with these weights `[K]`."""
        prompt = blank([own.vocabulary for own in self.engine.members], self.engine.reference_index)
        sequence = self.engine.open(prompt, call, None if weights is None else weights.tolist())
        sequence.weights = weights
        return sequence

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See `GenerationMixin.generate`. Weights are fitted to every prompt first.

        An answer ends where a member's context window has no more room, whatever the other limits
        of its length; padding follows, as after the end of any shorter answer.

        Warns:
            UserWarning: naming the member, for an answer that ended for want of room; not for a
                call with a `cache`, whose `window` tells.

        Raises:
            UnsupportedError: for decoding methods that a pack cannot run exactly.
            ConfigError: for arguments that are unknown, out of range, or contradict each other;
                nothing has been read then.
            PromptError: for no prompt, or one that is too long for a member.
        """
        named = _GENERATE.bind(self, *args, **kwargs).arguments
        arguments = {**named.pop("kwargs", {}), **named}
        del arguments["self"]
        ids = arguments.pop("inputs", None)
        ids = arguments.pop("input_ids", None) if ids is None else ids
        if ids is None:
            raise PromptError("there is nothing to generate from", hint="pass `input_ids`")
        name_cache(arguments)
        single_pad_id(arguments, self.generation_config)
        cache = arguments.get(CACHE)
        own_cache = cache is None
        prepared = isinstance(cache, FusedCache) and cache.prepared
        reference = self.engine.reference
        if not prepared:
            check_arguments(arguments, reference.tokenizer, reference.columns)
        settings = settings_in_force(self, arguments, ids)
        if not prepared:
            check_settings(self, settings, arguments)
        if cache is None:
            check_processing(self, vars(settings))
            cache = arguments[CACHE] = self._read(ids, settings, arguments)
        if not isinstance(cache, FusedCache):
            return _generate(self, ids, **arguments)
        if not own_cache and not prepared:
            self.engine.refresh()
        cache.endings = end_and_pad_ids(settings)
        cache.add_log_normalizers = wants_logits(settings, arguments)
        if settings.cache_implementation is not None:
            arguments["cache_implementation"] = None
        cache.window = window = WindowCriteria(cache, *ids.shape)
        criteria = arguments.pop("stopping_criteria", None)
        arguments["stopping_criteria"] = StoppingCriteriaList([*(criteria or []), window])
        noise = None if cache.seed is None else SeededChoice(cache.seed, *ids.shape)
        try:
            with beam_noise(noise):
                generated = _generate(self, ids, **arguments)
        finally:
            cache.ends_when_full = False
        notes = window.pad(generated, settings.pad_token_id)
        if own_cache:
            for note in notes:
                warnings.warn(note, stacklevel=2)
        return generated

    def _read(
        self, ids: Tensor, settings: GenerationConfig, arguments: dict[str, Any]
    ) -> FusedCache:
        """The cache of a call, with its prompts read."""
        mask = arguments.get("attention_mask")
        if mask is None:
            mask = generation_mask(self, ids, settings)
        call = self.call
        if forbids_tokens({**vars(settings), **arguments}):
            call = replace(call, full_support=True)
        prompts = self._read_prompts(unpadded(ids, mask), call)
        return FusedCache(call, prompts, use_cache=settings.use_cache is not False)

    def own_processors(
        self, cache: Any, settings: GenerationConfig, processors: LogitsProcessorList, start: int
    ) -> LogitsProcessorList:
        """See `processors_of_call`."""
        return processors_of_call(self, self.call, cache, settings, processors, start)

    def shaping_processors(self, processors: Any) -> Any:
        """See `GenerationHooks`."""
        return getattr(processors, "shaping", processors)

    def own_candidate_generator(
        self, cache: FusedCache, settings: GenerationConfig, processors: Any
    ) -> CandidateGenerator | None:
        """The drafter of the call; None if it has no draft method."""
        call = cache.call or self.call
        if call.draft is None:
            return None
        context = DraftContext(
            engine=self.engine,
            cache=cache,
            fusion=replace(call, observer=None),
            settings=settings,
            processors=processors,
            device=self.device.type,
            times=self.engine.step_times,
        )
        cache.draft_stats = context.stats
        return call.draft.drafter(context)

    def limit_candidates(self, cache: FusedCache, generator: CandidateGenerator) -> None:
        """Leave out candidates that a member has no room for; note the others for a trace."""
        drafting: Any = generator
        if cache.window is not None:
            drafting.get_candidates = cache.window.fitting(drafting.get_candidates)
        if cache.proposals is not None:
            drafting.get_candidates = cache.proposals.noting(drafting.get_candidates)

    def decoding_models(self) -> Sequence[nn.Module]:
        """The members' models."""
        return list(self.members)

    def _read_prompts(
        self, texts: list[list[int]], call: CallSettings | None = None
    ) -> list[PackSequence]:
        """Read prompts and fit their weights; a prompt that occurs twice is read once."""
        self.engine.refresh()
        call = call or self.call
        vocabularies = [member.vocabulary for member in self.engine.members]
        read: dict[tuple[int, ...], PackSequence] = {}
        prompts: list[PackSequence] = []
        for text in texts:
            key = tuple(text)
            if key in read:
                prompts.append(read[key].fork())
                continue
            prompt = from_ids(text, vocabularies, self.engine.reference_index)
            sequence, _ = prefill(
                self.engine,
                prompt,
                call.weighting,
                call,
                score=False,
                prefixes=self.prefixes,
            )
            sequence.offset = len(text) - len(sequence.ids)
            read[key] = sequence
            prompts.append(sequence)
        return prompts
