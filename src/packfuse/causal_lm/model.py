"""The pack as a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.call import CallSettings
from packfuse.causal_lm.checks import Refusals, check_decoding
from packfuse.causal_lm.config import FusedConfig, fused_config, fused_generation_config
from packfuse.causal_lm.drafts.base import DraftContext
from packfuse.causal_lm.inputs import checked_cache, unpadded
from packfuse.errors import PromptError, UnsupportedError
from packfuse.fusion.engine import Engine
from packfuse.fusion.pooling import FusedPosition
from packfuse.fusion.sequence import PackSequence
from packfuse.hf_compat import (
    CACHE,
    GenerationHooks,
    causal_output,
    end_and_pad_ids,
    generation_mask,
    generation_settings,
    name_cache,
)
from packfuse.models.hf_member import HFMember
from packfuse.text.prompt import blank, from_ids
from packfuse.weighting.prefill import prefill
from packfuse.weighting.prefix_cache import PrefixCache

_GENERATE = inspect.signature(GenerationMixin.generate)


class FusedForCausalLM(Refusals, GenerationHooks, PreTrainedModel, GenerationMixin):
    """A pack as one causal language model, over the reference's vocabulary.

    `generate`, pipelines and lm-eval use it like any other model. `forward` returns fused
    log-probabilities as its logits. `generate` fits the weights to each prompt; a bare `forward`
    fits none, since a likelihood must not depend on the tokens that follow.

    Attributes:
        engine: The members, paired with the reference.
        call: Settings of calls that bring none of their own; a call that does brings a
            `FusedCache` with them as `cache`.
        prefixes: The prefix cache; None for none.
    """

    config_class = FusedConfig
    base_model_prefix = "packfuse"
    main_input_name = "input_ids"

    def __init__(
        self, engine: Engine, call: CallSettings, prefixes: PrefixCache | None = None
    ) -> None:
        """Wrap an engine whose members are all local."""
        own = [member for member in engine.members if isinstance(member, HFMember)]
        reference = own[engine.reference_index]
        super().__init__(fused_config(engine, reference))
        # The reference comes first: transformers takes a model's device from its parameters.
        self.members = nn.ModuleList(
            [reference.model, *(m.model for m in own if m is not reference)]
        )
        self.engine, self.call, self.prefixes = engine, call, prefixes
        self.generation_config = fused_generation_config(reference)
        # Pipelines move a model to a device of their own unless it says that it is placed.
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
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Fused next-token log-probabilities.

        Args:
            input_ids: Reference ids `[B, n]`, only the new ones when a cache is given.
            attention_mask: `[B, past + n]`; zeros may stand on the left of a row, or of what is new
                in it, only.
            cache: What has been read before, and the settings of the call.
            use_cache: False to return no cache.
            logits_to_keep: How many last positions are wanted; 0 for all.
            return_dict: False for a tuple.
            labels: Refused; a pack is not trained.
            past_key_values: `cache`, by its name in transformers before 5.24.

        Returns:
            `logits` `[B, kept, V]`: normalized log-probabilities, nats, float32. Positions of
            padding hold zeros.

        Raises:
            UnsupportedError: for labels, or another kind of cache.
            PromptError: for holes in the mask, or a context that is too long.
        """
        if labels is not None:
            raise UnsupportedError("a pack has no loss to train on", hint="leave `labels` out")
        cache = checked_cache(past_key_values if cache is None else cache)
        call = cache.call or self.call
        columns = input_ids.shape[1]
        texts = unpadded(input_ids, attention_mask)
        keep = min(logits_to_keep or columns, columns)
        rows = cache.rows
        if rows:
            logits = self._advance(rows, texts, keep, call, cache)
        else:
            rows, logits = self._begin(texts, keep, call, cache)
        if cache.normalizers:
            logits = logits + self._log_normalizers(rows, keep)
        if cache.keep:
            cache.rows = rows
            cache.seen += columns
        returned = None if use_cache is False else cache
        output = causal_output(logits, returned)
        return output.to_tuple() if return_dict is False else output

    def _begin(
        self, texts: list[list[int]], keep: int, call: CallSettings, cache: FusedCache
    ) -> tuple[list[PackSequence], Tensor]:
        """Read whole sequences, from the end of prompts that have been read where there are any."""
        rows = cache.begin(len(texts))
        rest = [text[row.length :] for text, row in zip(texts, rows, strict=False)]
        if not rows or keep > 1 + min(map(len, rest)):
            likes: Sequence[PackSequence | None] = rows or [None] * len(texts)
            rows = [self._blank(call, like) for like in likes]
            return rows, self._advance(rows, texts, keep, call, cache)
        for index, row in enumerate(rows):
            row.row = index
            if call.observer and row.member_logps is not None and row.fused_logps is not None:
                # The position after the prompt was fused before the observer was there.
                position = FusedPosition(
                    len(row.ids), row.member_logps, row.fused_logps, row.is_fused
                )
                call.observer(row, position)
        first = torch.stack([row.fused_logps for row in rows if row.fused_logps is not None])[
            :, None
        ]
        if not rest[0]:
            return rows, first
        later = self._advance(rows, rest, min(keep, len(rest[0])), call, cache)
        return rows, torch.cat([first, later], 1) if keep > len(rest[0]) else later

    def _advance(
        self,
        rows: list[PackSequence],
        texts: list[list[int]],
        keep: int,
        call: CallSettings,
        cache: FusedCache,
    ) -> Tensor:
        """Read new ids in every row; the last `keep` positions, padding among them."""
        if keep <= min(map(len, texts)):
            return self.engine.advance(
                rows, texts, call, keep, endings=cache.endings, save_states=keep > 1
            )
        # Padding has no distribution; zeros stand there, which the mask hides.
        found = []
        for row, text in zip(rows, texts, strict=True):
            logits = self.engine.advance([row], [text], call, min(keep, len(text)))[0]
            found.append(nn.functional.pad(logits, (0, 0, keep - len(logits), 0)))
        return torch.stack(found)

    def _log_normalizers(self, rows: Sequence[PackSequence], keep: int) -> Tensor:
        """The members' weighted mean logsumexp of logits, `[B, keep, 1]`, nats."""
        heights = torch.zeros(len(rows), keep, 1, device=self.device)
        for index, row in enumerate(rows):
            count = len(row.streams)
            weights = [1 / count] * count if row.weights is None else row.weights.tolist()
            for stream, weight in zip(row.streams, weights, strict=True):
                known = stream.session.log_normalizers if stream else None
                if known is not None and weight:
                    last = weight * known[-keep:].to(heights).nan_to_num(0.0, 0.0, 0.0)
                    # A member with fewer tokens there has about the same height at all of them.
                    heights[index, :, 0] += nn.functional.pad(
                        last[None, None], (keep - len(last), 0), mode="replicate"
                    )[0, 0]
        return heights

    def _blank(self, call: CallSettings, like: PackSequence | None) -> PackSequence:
        """An empty sequence with the weights of another one, or those of a bare `forward`."""
        vocabularies = [member.vocabulary for member in self.engine.members]
        row = self.engine.open(blank(vocabularies, self.engine.reference_index), call)
        row.weights = like.weights if like else call.forward_weights
        return row

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`, with the members weighted on every prompt first.

        Raises:
            UnsupportedError: for decoding methods that a pack cannot do exactly.
            PromptError: for no prompt, or one that a member cannot read.
        """
        named = _GENERATE.bind(self, *args, **kwargs).arguments
        arguments = {**named.pop("kwargs", {}), **named}
        del arguments["self"]
        ids = arguments.pop("inputs", None)
        ids = arguments.pop("input_ids", None) if ids is None else ids
        if ids is None:
            raise PromptError("there is nothing to generate from", hint="pass `input_ids`")
        name_cache(arguments)
        settings = self._settings(arguments, ids)
        check_decoding(settings, arguments, self.config.vocab_size)
        cache = arguments.get(CACHE)
        if cache is None:
            mask = arguments.get("attention_mask")
            if mask is None:
                mask = generation_mask(self, ids, settings)
            prompts = self._read_prompts(unpadded(ids, mask))
            cache = FusedCache(self.call, prompts, keep=settings.use_cache is not False)
            arguments[CACHE] = cache
        if isinstance(cache, FusedCache):
            cache.endings = end_and_pad_ids(settings)
            # A penalty multiplies logits, and log-probabilities near certainty are near 0.
            cache.normalizers = settings.repetition_penalty not in (None, 1.0)
            if settings.cache_implementation is not None:
                arguments["cache_implementation"] = None
        generate: Any = GenerationMixin.generate
        return generate(self, ids, **arguments)

    def _settings(self, arguments: dict[str, Any], ids: Tensor) -> GenerationConfig:
        """The generation settings in force, as `generate` will find them."""
        given = {key: value for key, value in arguments.items() if key != "generation_config"}
        return generation_settings(self, arguments.get("generation_config"), given, ids)

    def own_candidate_generator(
        self, cache: FusedCache, settings: GenerationConfig, processors: Any
    ) -> CandidateGenerator | None:
        """The call's own way to draft, if it has one."""
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
        )
        cache.draft_stats = context.stats
        return call.draft.drafter(context)

    def decoding_models(self) -> Sequence[nn.Module]:
        """The members' models."""
        return list(self.members)

    def _read_prompts(self, texts: list[list[int]]) -> list[PackSequence]:
        """Read prompts and fit their weights; equal ones are read once."""
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
                self.call.weighting,
                self.call,
                score=False,
                prefixes=self.prefixes,
            )
            sequence.offset = len(text) - len(sequence.ids)
            read[key] = sequence
            prompts.append(sequence)
        return prompts

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out: the reference's device."""
        return next(self.members[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the reference's parameters; fused log-probabilities are float32."""
        return next(self.members[0].parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """The reference's."""
        return self.members[0].get_input_embeddings()  # type: ignore[no-any-return,operator]

    def get_output_embeddings(self) -> nn.Module:
        """The reference's."""
        return self.members[0].get_output_embeddings()  # type: ignore[no-any-return,operator]

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Nothing: members tied their own weights when they were loaded."""

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: members come with their weights."""
