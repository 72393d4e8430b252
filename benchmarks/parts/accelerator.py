"""What only a GPU can show."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from packfuse import Pack
from packfuse.models.loading import wrap

from .bench import Bench
from .compiled import FLOOR, row_of, times
from .rows import Part, Row, Target

SEVEN: tuple[dict[str, int], ...] = (
    {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "intermediate_size": 11008,
    },
    {
        "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944,
    },
)  # fmt: skip
"""Llama 2 7B's sizes (arXiv 2307.09288) and Qwen2.5 7B's (arXiv 2412.15115)."""

_KINDS: tuple[tuple[Any, Any], ...] = (
    (LlamaForCausalLM, LlamaConfig),
    (Qwen2ForCausalLM, Qwen2Config),
)


def measure(bench: Bench, device: str = "cuda", sizes: tuple[dict[str, int], ...] = SEVEN) -> Part:
    """Two members of 7B on one GPU: the compiled pack over the sum of its compiled members."""
    what = "two members of 7B, random weights, bfloat16: time per token"
    target = Target(value=1.05)
    about = "The starter pack's tokenizers, equal weights, one prompt, greedy."
    if device == "cuda" and not torch.cuda.is_available():
        row = Row(what=what, against=FLOOR, target=target, skipped="no GPU here")
        return Part(title="On a GPU", about=about, rows=[row])
    pack = _pair(bench, torch.device(device), sizes)
    found = times(bench, pack.members, {"compiled": pack})
    return Part(title="On a GPU", about=about, rows=[row_of(what, found, pack.members, target)])


def _pair(bench: Bench, device: torch.device, sizes: tuple[dict[str, int], ...]) -> Pack:
    """Members of random weights that speak the starter pack's tokens, compiled."""
    members = []
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for own, size, (kind, config) in zip(bench.members, sizes, _KINDS, strict=True):
            with device:
                model = kind(config(vocab_size=own.vocabulary.columns, **size))
            model.generation_config.eos_token_id = own.vocabulary.end_ids
            members.append(wrap(own.name, model, own.tokenizer))
    finally:
        torch.set_default_dtype(before)
    return Pack(
        members, reference=bench.reference, weighting="uniform", prefix_cache=0, compiled=True,
        progress=False,
    )  # fmt: skip
