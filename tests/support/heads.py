"""Tiny models of many families, for tests of LM heads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COLUMNS = 300
_USUAL: dict[str, Any] = {
    "vocab_size": COLUMNS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
_MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}  # fmt: skip
_KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama, tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "gemma2, capped": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 3.0}),
    "gemma3, capped": (Gemma3ForCausalLM, Gemma3TextConfig, {"final_logit_softcapping": 3.0}),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig, {"sliding_window": 4}),
    "granite, scaled": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 7.0}),
    "cohere, scaled": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.3}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 4}),
    "phi, with a bias": (PhiForCausalLM, PhiConfig, {}),
    "gpt-neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_head": 2, "n_layer": 2}),
    "falcon-h1, multiplied": (
        FalconH1ForCausalLM, FalconH1Config, {**_MAMBA, "lm_head_multiplier": 0.3},
    ),
    "lfm2": (Lfm2ForCausalLM, Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
}  # fmt: skip
FAMILIES = tuple(_KINDS)


def family(name: str) -> PreTrainedModel:
    """A tiny random model; its biases are random, too."""
    model, config, settings = _KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: PreTrainedModel = model(config(**{**_USUAL, **settings}))
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.2)
    return made.eval()
