"""Tiny random models with real tokenizers, for the whole test suite."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.support.packaged import (
    PACKAGED,
    STARTER,
    folder_tokenizer,
    mistral_data,
    real_tokenizer,
    real_tokenizers,
)

__all__ = [
    "ARCHITECTURES",
    "PACKAGED",
    "STARTER",
    "WINDOW",
    "draw",
    "folder_tokenizer",
    "mistral_data",
    "padded_size",
    "real_tokenizer",
    "real_tokenizers",
    "save_tiny",
    "tiny_model",
    "tiny_pair",
]

HIDDEN = 32
HEADS = 2
WINDOW = 8
LOGIT_STD = 4.0


class Architecture(NamedTuple):
    """A model class, its configuration class, and what makes it tiny."""

    model: type[PreTrainedModel]
    config: Callable[..., PreTrainedConfig]
    settings: dict[str, Any]


_USUAL = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
}
_KINDS = {
    "llama": Architecture(LlamaForCausalLM, LlamaConfig, {**_USUAL, "num_hidden_layers": 2}),
    "gemma3": Architecture(
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            **_USUAL,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": WINDOW,
            "head_dim": HIDDEN // HEADS,
            "query_pre_attn_scalar": HIDDEN // HEADS,
        },
    ),
    "lfm2": Architecture(
        Lfm2ForCausalLM,
        Lfm2Config,
        {
            **_USUAL,
            "num_hidden_layers": 3,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "qwen3_next": Architecture(
        Qwen3NextForCausalLM,
        Qwen3NextConfig,
        {
            **_USUAL,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_only_layers": [0, 1],
            "head_dim": HIDDEN // HEADS,
            "linear_num_key_heads": HEADS,
            "linear_num_value_heads": HEADS,
            "linear_key_head_dim": HIDDEN // HEADS,
            "linear_value_head_dim": HIDDEN // HEADS,
        },
    ),
    "gpt2": Architecture(
        GPT2LMHeadModel, GPT2Config, {"n_embd": HIDDEN, "n_head": HEADS, "n_layer": 2}
    ),
}
ARCHITECTURES = tuple(_KINDS)


def padded_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """The next multiple of 64 *above* the tokenizer's size, so there are always padding rows."""
    return (len(tokenizer) // 64 + 1) * 64


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    arch: str = "llama",
    seed: int = 0,
    *,
    context: int = 512,
    tied: bool = False,
) -> PreTrainedModel:
    """A new random float32 model in eval mode with the vocabulary size of a tokenizer.

    Logits have a standard deviation of about 4, so that the difference between the two best tokens
    is much larger than a rounding error. The global random state is not changed.

    Args:
        tokenizer: Defines the vocabulary size and the special ids.
        arch: One of `ARCHITECTURES`.
        seed: Same seed, same weights.
        context: `max_position_embeddings`, in tokens.
        tied: Whether the LM head is the input embedding. Such a random model mostly repeats its
            last token.
    """
    if arch not in _KINDS:
        raise LookupError(f"no tiny model is called {arch!r} (known: {', '.join(ARCHITECTURES)})")
    settings = {
        "vocab_size": padded_size(tokenizer),
        "max_position_embeddings": context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": tied,
    }
    return copy.deepcopy(_drawn(arch, seed, tuple(settings.items())))


@functools.lru_cache(maxsize=16)
def _drawn(arch: str, seed: int, settings: tuple[tuple[str, Any], ...]) -> PreTrainedModel:
    """The last models: to copy one takes a tenth of the time of drawing it."""
    return draw(arch, seed, **dict(settings))


def draw(arch: str, seed: int, **settings: Any) -> PreTrainedModel:
    """A random float32 model in eval mode; the global random state is not changed."""
    kind = _KINDS[arch]
    config = kind.config(**kind.settings, **settings, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.model(config)
    _randomize(model, torch.Generator().manual_seed(seed))
    return model.eval()


def tiny_pair(
    name: str, arch: str = "llama", seed: int = 0, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tiny model with the packaged tokenizer of that name, as `Pack.from_pretrained` takes it."""
    tokenizer = real_tokenizer(name)
    return tiny_model(tokenizer, arch, seed, **options), tokenizer


def save_tiny(folder: Path, name: str, arch: str = "llama", seed: int = 0, **options: Any) -> Path:
    """Save a tiny model and its tokenizer as a local model folder, and return the folder."""
    model, tokenizer = tiny_pair(name, arch, seed, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _randomize(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw every matrix so that hidden states have a size of about 1 and logits `LOGIT_STD`."""
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.normal_(std=1.5 / math.sqrt(min(weight.shape)), generator=generator)
    embedding.normal_(std=1.0 / math.sqrt(HIDDEN), generator=generator)
    head.normal_(std=LOGIT_STD / math.sqrt(HIDDEN), generator=generator)
