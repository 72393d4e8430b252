"""The pack as a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse.cache import FusedCache
from packfuse.drafts.base import Draft, Drafting, Tally
from packfuse.engine import Engine
from packfuse.errors import PromptError, UnsupportedError
from packfuse.fitting import prefill
from packfuse.fusedconfig import FusedConfig, fused_config, fused_generation_config
from packfuse.hf_compat import (
    CACHE,
    GenerationHooks,
    causal_output,
    end_and_pad_ids,
    generation_mask,
    generation_settings,
    name_cache,
)
from packfuse.inputs import checked_cache, unpadded
from packfuse.local import LocalMember
from packfuse.pooling import Position, Watch
from packfuse.prefills import Key, Prefills
from packfuse.prompt import blank, from_ids
from packfuse.refusals import Refusals, check_decoding
from packfuse.row import Row
from packfuse.weightings.base import Weighting

_GENERATE = inspect.signature(GenerationMixin.generate)


class FusedForCausalLM(Refusals, GenerationHooks, PreTrainedModel, GenerationMixin):
    """Several causal language models that answer as one, over the reference's vocabulary.

    `generate`, pipelines and lm-eval use it like any other model. `forward` returns fused
    log-probabilities as its logits. Weights are fitted to each prompt by `generate`; `forward`
    on its own uses `default_weights`, since a likelihood must not depend on what follows.

    Attributes:
        engine: The members, paired with the reference.
        weighting: How `generate` weighs the members on a prompt.
        default_weights: `[K]` weights of a bare `forward`; None for equal ones.
        watch: Sees every fused position.
        draft: How `generate` drafts when it is told to look up prompts; None for the usual way.
        tally: What became of the drafts of the last `generate`.
        prefills: Prompts that `generate` need not read again.
    """

    config_class = FusedConfig
    base_model_prefix = "packfuse"
    main_input_name = "input_ids"

    def __init__(self, engine: Engine, weighting: Weighting) -> None:
        """Wrap an engine whose members are all local."""
        own = [member for member in engine.members if isinstance(member, LocalMember)]
        reference = own[engine.reference_index]
        super().__init__(fused_config(engine, reference))
        # The reference comes first: transformers takes a model's device from its parameters.
        self.members = nn.ModuleList(
            [reference.model, *(m.model for m in own if m is not reference)]
        )
        self.engine, self.weighting = engine, weighting
        self.default_weights: Tensor | None = None
        self.watch: Watch | None = None
        self.draft: Draft | None = None
        self.tally: Tally | None = None
        self.prefills = Prefills()
        self._unnormalized = False
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
            cache: What has been read before.
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
        columns = input_ids.shape[1]
        texts = unpadded(input_ids, attention_mask)
        keep = min(logits_to_keep or columns, columns)
        if cache.rows:
            logits = self._advance(cache, texts, keep)
        else:
            rows = self.prefills.take(texts, columns, last=use_cache is not False)
            logits = self._begin(cache, texts, keep, rows)
        if self._unnormalized:
            logits = logits + self._levels(cache, keep)
        cache.seen += columns
        returned = None if use_cache is False else cache
        output = causal_output(logits, returned)
        return output.to_tuple() if return_dict is False else output

    def _begin(
        self, cache: FusedCache, texts: list[list[int]], keep: int, rows: list[Row] | None
    ) -> Tensor:
        """Fill an empty cache from whole sequences, from prefilled prompts where there are any."""
        rest = [text[row.length :] for text, row in zip(texts, rows or [], strict=False)]
        if rows is None or keep > 1 + min(map(len, rest)):
            cache.rows = [self._blank(rows[i] if rows else None) for i in range(len(texts))]
            return self._advance(cache, texts, keep)
        cache.rows = rows
        for place, row in enumerate(rows):
            row.place = place
            if self.watch and row.heard is not None and row.last is not None:
                # What was said right after the prompt, before anyone watched.
                self.watch(row, Position(len(row.ids), row.heard, row.last, row.joined))
        # The last position of the prompt has been fused already.
        first = torch.stack([row.last for row in rows if row.last is not None])[:, None]
        if not rest[0]:
            return first
        later = self._advance(cache, rest, min(keep, len(rest[0])))
        return torch.cat([first, later], 1) if keep > len(rest[0]) else later

    def _advance(self, cache: FusedCache, texts: list[list[int]], keep: int) -> Tensor:
        """Read what is new in every row; the last `keep` positions, padding among them."""
        if keep <= min(map(len, texts)):
            return self.engine.advance(
                cache.rows, texts, keep, self.watch, cache.endings, mark=keep > 1
            )
        # Padding has no distribution; whatever stands there is masked by whoever padded.
        found = []
        for row, text in zip(cache.rows, texts, strict=True):
            logits = self.engine.advance([row], [text], min(keep, len(text)), self.watch)[0]
            found.append(nn.functional.pad(logits, (0, 0, keep - len(logits), 0)))
        return torch.stack(found)

    def _levels(self, cache: FusedCache, keep: int) -> Tensor:
        """How high the members' logits lie on average, `[B, keep, 1]`: what penalties multiply."""
        levels = torch.zeros(len(cache.rows), keep, 1, device=self.device)
        for index, row in enumerate(cache.rows):
            count = len(row.readers)
            weights = [1 / count] * count if row.weights is None else row.weights.tolist()
            for reader, weight in zip(row.readers, weights, strict=True):
                known = reader.session.levels if reader else None
                if known is not None and weight:
                    last = weight * known[-keep:].to(levels).nan_to_num(0.0, 0.0, 0.0)
                    # A member with fewer tokens there has about the same height at all of them.
                    levels[index, :, 0] += nn.functional.pad(
                        last[None, None], (keep - len(last), 0), mode="replicate"
                    )[0, 0]
        return levels

    def _blank(self, like: Row | None) -> Row:
        """A row that has read nothing, with the weights of another row or the default ones."""
        vocabularies = [member.vocabulary for member in self.engine.members]
        row = self.engine.open(blank(vocabularies, self.engine.reference_index))
        row.weights = like.weights if like else self.default_weights
        return row

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`, with the members weighed on every prompt first.

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
        added: list[Key] = []
        width, unnormalized = self.prefills.width, self._unnormalized
        # A penalty multiplies logits, and log-probabilities of near certainty are near 0.
        self._unnormalized = settings.repetition_penalty not in (None, 1.0)
        try:
            cache = arguments.get(CACHE)
            if cache is None:
                mask = arguments.get("attention_mask")
                if mask is None:
                    mask = generation_mask(self, ids, settings)
                self._fit_prompts(unpadded(ids, mask), added)
                self.prefills.width = ids.shape[1]
                if settings.use_cache is not False:
                    arguments[CACHE] = cache = FusedCache()
                    if settings.cache_implementation is not None:
                        arguments["cache_implementation"] = None
            if isinstance(cache, FusedCache):
                cache.endings = end_and_pad_ids(settings)
            generate: Any = GenerationMixin.generate
            return generate(self, ids, **arguments)
        finally:
            self.prefills.width, self._unnormalized = width, unnormalized
            self.prefills.drop(added)

    def _settings(self, arguments: dict[str, Any], ids: Tensor) -> GenerationConfig:
        """The generation settings in force, as `generate` will find them."""
        given = {key: value for key, value in arguments.items() if key != "generation_config"}
        return generation_settings(self, arguments.get("generation_config"), given, ids)

    def own_candidate_generator(
        self, cache: FusedCache, settings: GenerationConfig, processors: Any
    ) -> CandidateGenerator | None:
        """The pack's own way to draft, if one is set."""
        if self.draft is None:
            return None
        drafting = Drafting(self.engine, cache, settings, processors, self.device.type)
        self.tally = drafting.tally
        return self.draft.drafter(drafting)

    def decoding_models(self) -> Sequence[nn.Module]:
        """The members' models."""
        return list(self.members)

    def _fit_prompts(self, texts: list[list[int]], added: list[Key]) -> None:
        """Read and weigh the prompts that are not here yet; their keys go to `added`."""
        vocabularies = [member.vocabulary for member in self.engine.members]
        for text in texts:
            if tuple(text) not in self.prefills:
                prompt = from_ids(text, vocabularies, self.engine.reference_index)
                row, fit = prefill(self.engine, prompt, self.weighting, score=False)
                self.prefills.add(text, row, fit)
                added.append(tuple(text))

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
