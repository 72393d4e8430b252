"""Weights and tokenizers as transformers loads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from packfuse.errors import LoadError
from packfuse.hf_compat.models import tekken_tokenizer
from packfuse.models.loading.adapters import NO_ADAPTER, add_adapter, find_adapter
from packfuse.models.loading.architecture import auto_class, is_composite
from packfuse.models.loading.gguf.tokenizer import gguf_tokenizer
from packfuse.models.loading.loaded_weights import check_loaded
from packfuse.models.loading.source import Source, split_gguf
from packfuse.models.loading.weight_files import check_weights


def load_model(
    source: Source, how: Mapping[str, Any], *, unsafe: bool
) -> tuple[PreTrainedModel, Source]:
    """Load the weights of a model, and its adapter if the source is one.

    Args:
        source: Where the model is.
        how: Arguments of `from_pretrained` for the weights.
        unsafe: Whether pickled weights are accepted.

    Returns:
        The model, and the source of the model under the adapter (the same without adapter).

    Raises:
        LoadError: for weights that do not belong to the model, or that are not accepted.
        Exception: what transformers raises.
    """
    adapter = find_adapter(source)
    base = adapter.base if adapter else source
    config = AutoConfig.from_pretrained(base.place, **base.arguments)
    auto = auto_class(config)
    if auto is None:
        own = (config.architectures or [type(config).__name__])[0]
        raise LoadError(
            f"it is a {own}, not a causal language model",
            hint="a member generates text after text, as models that end in ForCausalLM do",
        )
    check_weights(base, getattr(config, "transformers_weights", None), unsafe=unsafe)
    model, info = auto.from_pretrained(
        base.place,
        use_safetensors=None if unsafe or base.gguf else True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **({"adapter_kwargs": dict(NO_ADAPTER)} if adapter else {}),
        **how,
        **base.arguments,
    )
    check_loaded(model, info, composite=is_composite(config))
    if adapter:
        add_adapter(model, adapter, unsafe=unsafe)
    return model, base


def load_tokenizer(source: Source, other: str | None, base: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Args:
        source: Where the model is.
        other: Hub id or folder of the tokenizer, where it is not the model's own.
        base: Where the model under an adapter is.
    """
    folder, file = split_gguf(other) if other else (source.place, source.gguf)
    if file:
        return gguf_tokenizer(Path(folder, file))
    place = source.at(other) if other else source
    if place is not base and not place.file("tokenizer_config.json"):
        place = base if not other else place
    given = place.arguments
    if tekken := place.file("tekken.json"):
        if not place.file("tokenizer.json"):
            converted: PreTrainedTokenizerBase = tekken_tokenizer(str(tekken))
            return converted
        given["mistral_format"] = False  # the tokenizer of mistral-common has no fast backend
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place.place, **given)
    return found
