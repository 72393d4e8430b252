"""The pack as a transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from packfuse.cache import FusedCache
from packfuse.engine import Engine, Watch
from packfuse.errors import PromptError, UnsupportedError
from packfuse.fitting import Fit, prefill
from packfuse.local import LocalMember
from packfuse.prompt import blank, from_ids
from packfuse.row import Row
from packfuse.weightings.base import Weighting


class FusedConfig(PreTrainedConfig):
    """What transformers wants to know of a pack: the reference's vocabulary, the pack's window."""

    model_type = "packfuse"
    vocab_size: int = 0
    max_position_embeddings: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    is_encoder_decoder: bool = False


class FusedForCausalLM(PreTrainedModel, GenerationMixin):
    """Several causal language models that answer as one, over the reference's vocabulary.

    `generate`, pipelines and lm-eval use it like any other model. `forward` returns fused
    log-probabilities as its logits. Weights are fitted to each prompt by `generate`; `forward`
    on its own uses `default_weights`, since a likelihood must not depend on what follows.

    Attributes:
        engine: The members, paired with the reference.
        weighting: How `generate` weighs the members on a prompt.
        default_weights: `[K]` weights of a bare `forward`; None for equal ones.
        watch: Sees every fused position.
    """

    config_class = FusedConfig
    base_model_prefix = "packfuse"
    main_input_name = "input_ids"

    def __init__(self, engine: Engine, weighting: Weighting) -> None:
        """Wrap an engine whose members are all local."""
        own = [member for member in engine.members if isinstance(member, LocalMember)]
        reference = own[engine.reference_index]
        super().__init__(_config(engine, reference))
        # The reference comes first: transformers takes a model's device from its parameters.
        self.members = nn.ModuleList(
            [reference.model, *(m.model for m in own if m is not reference)]
        )
        self.engine, self.weighting = engine, weighting
        self.default_weights: Tensor | None = None
        self.watch: Watch | None = None
        self.prefills = Prefills()
        self.generation_config = _generation_config(reference)
        # Pipelines move a model to a device of their own unless it says that it is placed.
        self.hf_device_map = {"": self.device}
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Fused next-token log-probabilities.

        Args:
            input_ids: Reference ids `[B, n]`, only the new ones when a cache is given.
            attention_mask: `[B, past + n]`; zeros may stand on the left only.
            past_key_values: What has been read before.
            use_cache: False to return no cache.
            logits_to_keep: How many last positions are wanted; 0 for all.
            return_dict: False for a tuple.
            labels: Refused; a pack is not trained.

        Returns:
            `logits` `[B, kept, V]`: normalized log-probabilities, nats, float32.

        Raises:
            UnsupportedError: for labels, or another kind of cache.
            PromptError: for holes in the mask, or a context that is too long.
        """
        if labels is not None:
            raise UnsupportedError("a pack has no loss to train on", hint="leave `labels` out")
        cache = _checked(past_key_values)
        keep = logits_to_keep or input_ids.shape[1]
        if cache.rows:
            ids = input_ids.tolist()
            logits = self.engine.advance(cache.rows, ids, keep, self.watch)
        else:
            texts = _unpadded(input_ids, attention_mask)
            logits = self._begin(cache, texts, keep)
        cache.seen += input_ids.shape[1]
        returned = None if use_cache is False else cache
        output = CausalLMOutputWithPast(logits=logits, past_key_values=returned)
        return output.to_tuple() if return_dict is False else output

    def _begin(self, cache: FusedCache, texts: list[list[int]], keep: int) -> Tensor:
        """Fill an empty cache from whole sequences, from prefilled prompts where there are any."""
        known = [self.prefills.take(text) for text in texts]
        rest = [len(text) - (row.length if row else 0) for text, row in zip(texts, known, strict=True)]
        if all(known) and keep - 1 <= min(rest) and len({r == 0 for r in rest}) == 1:
            cache.rows = [row for row in known if row]
            self._announce(cache.rows)
            return self._resume(cache.rows, [t[len(t) - r :] for t, r in zip(texts, rest, strict=True)], keep)
        cache.rows = [self._blank(row) for row in known]
        wanted = min(keep, *map(len, texts))
        logits = self.engine.advance(cache.rows, texts, wanted, self.watch)
        # Left padding has no distribution; whatever stands there is masked by whoever padded.
        return nn.functional.pad(logits, (0, 0, keep - wanted, 0))

    def _announce(self, rows: list[Row]) -> None:
        """Tell the watcher what was said right after the prompts."""
        for place, row in enumerate(rows):
            row.place = place
            if self.watch and row.heard is not None and row.last is not None:
                self.watch(row, row.heard, row.last)

    def _resume(self, rows: list[Row], rest: list[list[int]], keep: int) -> Tensor:
        """Go on from prefilled rows; the last prompt position may itself be wanted."""
        first = torch.stack([row.last for row in rows if row.last is not None])[:, None]
        if not rest[0]:
            return first
        count = min(map(len, rest))
        later = self.engine.advance(rows, rest, min(keep, count), self.watch)
        return torch.cat([first, later], 1) if keep > count else later

    def _blank(self, like: Row | None) -> Row:
        """A row that has read nothing, with the weights of another row or the default ones."""
        vocabularies = [member.vocabulary for member in self.engine.members]
        row = self.engine.open(blank(vocabularies, self.engine.reference_index))
        row.weights = like.weights if like else self.default_weights
        return row

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`, with the members weighed on every prompt first.

        Raises:
            UnsupportedError: for decoding methods that a pack cannot do exactly.
        """
        _refuse(self, kwargs)
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is None:
            raise PromptError("there is nothing to generate from", hint="pass `input_ids`")
        added: list[tuple[int, ...]] = []
        if kwargs.get("past_key_values") is None:
            added = self._fit_prompts(_unpadded(ids, kwargs.get("attention_mask")))
            if _setting(kwargs, "use_cache") is not False:
                kwargs["past_key_values"] = FusedCache()
        try:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[operator]
        finally:
            self.prefills.drop(added)

    def _fit_prompts(self, texts: list[list[int]]) -> list[tuple[int, ...]]:
        """Fit the prompts that nobody has fitted yet; their keys."""
        added: list[tuple[int, ...]] = []
        vocabularies = [member.vocabulary for member in self.engine.members]
        for text in texts:
            if tuple(text) not in self.prefills:
                prompt = from_ids(text, vocabularies, self.engine.reference_index)
                row, fit = prefill(self.engine, prompt, self.weighting, score=False)
                self.prefills.add(text, row, fit)
                added.append(tuple(text))
        return added

    # What transformers asks of a model, and what a pack cannot be asked.

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

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a pack is a list of models, not weights of its own."""
        raise UnsupportedError("a pack has no weights of its own", hint="use Pack.save_config")

    def set_attn_implementation(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: it would change members that others may be using."""
        raise UnsupportedError("a pack's members keep their attention", hint="set it on a member")

    def generate_batch(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: paged caches cannot hold rows that advance unevenly."""
        raise UnsupportedError("a pack cannot do continuous batching", hint="use generate")

    init_continuous_batching = generate_batch


class Prefills:
    """Prompts that have been read and weighed, waiting for `generate` to start from them."""

    def __init__(self) -> None:
        """None yet."""
        self._rows: dict[tuple[int, ...], tuple[Row, Fit]] = {}

    def __contains__(self, ids: tuple[int, ...]) -> bool:
        """Whether exactly this prompt is here."""
        return ids in self._rows

    def add(self, ids: Sequence[int], row: Row, fit: Fit) -> None:
        """Keep a row that stands at the end of `ids`."""
        # The row's own ids leave out the members' templates; its length is that of the prompt.
        row.offset = len(ids) - len(row.ids)
        self._rows[tuple(ids)] = (row, fit)

    def fit(self, ids: Sequence[int]) -> Fit:
        """What the prompt said."""
        return self._rows[tuple(ids)][1]

    def take(self, ids: Sequence[int]) -> Row | None:
        """A copy of the row whose prompt is the longest beginning of `ids`."""
        known = [key for key in self._rows if tuple(ids[: len(key)]) == key]
        return self._rows[max(known, key=len)][0].fork() if known else None

    def drop(self, keys: Sequence[tuple[int, ...]]) -> None:
        """Forget prompts and free what they hold."""
        for key in keys:
            self._rows.pop(key, None)


def _config(engine: Engine, reference: LocalMember) -> FusedConfig:
    own = reference.model.config.get_text_config()
    config = FusedConfig(
        vocab_size=engine.reference.columns,
        max_position_embeddings=min(member.context_window for member in engine.members),
        bos_token_id=getattr(own, "bos_token_id", None),
        eos_token_id=list(engine.reference.end_ids) or None,
        pad_token_id=_pad(reference),
    )
    config.architectures = ["FusedForCausalLM"]
    return config


def _generation_config(reference: LocalMember) -> GenerationConfig:
    """The reference's special ids; its sampling habits are not the pack's."""
    return GenerationConfig(
        bos_token_id=reference.tokenizer.bos_token_id,
        eos_token_id=list(reference.vocabulary.end_ids) or None,
        pad_token_id=_pad(reference),
    )


def _pad(reference: LocalMember) -> int | None:
    ends = reference.vocabulary.end_ids
    own = reference.tokenizer.pad_token_id
    return own if own is not None else (ends[0] if ends else None)


def _checked(given: Any) -> FusedCache:
    if given is None:
        return FusedCache()
    if not isinstance(given, FusedCache):
        raise UnsupportedError(
            f"a pack cannot use a {type(given).__name__}",
            hint="pass no cache, or one that the pack returned",
        )
    return given


def _unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Rows without their left padding."""
    rows: list[list[int]] = ids.tolist()
    if mask is None:
        return rows
    kept = [int(count) for count in mask.sum(-1).tolist()]
    for index, count in enumerate(kept):
        if not bool(mask[index, mask.shape[1] - count :].all()):
            raise PromptError(
                f"row {index} of the attention mask has zeros on the right or inside",
                hint="pad on the left",
            )
    return [row[len(row) - count :] for row, count in zip(rows, kept, strict=True)]


def _setting(kwargs: dict[str, Any], name: str) -> Any:
    """A generation setting, given directly or in a GenerationConfig."""
    return kwargs.get(name, getattr(kwargs.get("generation_config"), name, None))


def _refuse(model: FusedForCausalLM, kwargs: dict[str, Any]) -> None:
    """Decoding methods that would be wrong, slow or harmful with a pack."""
    cache = _setting(kwargs, "cache_implementation")
    if cache not in (None, "dynamic"):
        raise UnsupportedError(
            f"a pack has no {cache!r} cache", hint="leave cache_implementation out"
        )
    if _setting(kwargs, "assistant_early_exit") is not None:
        raise UnsupportedError("a pack has no layers to exit early from")
    assistant = kwargs.get("assistant_model")
    if assistant is None or not _setting(kwargs, "do_sample"):
        return
    if assistant.config.get_text_config().vocab_size != model.config.vocab_size:
        raise UnsupportedError(
            "sampling with an assistant of another vocabulary would alter the assistant",
            hint="use the reference member as assistant, or do_sample=False",
        )
