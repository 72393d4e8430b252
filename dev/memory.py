"""Computes how much memory well-known models take, for docs/memory.md and its calculator.

python dev/memory.py    # writes docs/assets/memory.json and the table in docs/memory.md

Nothing is fetched: the models' published configurations are below, and what is computed from them
is what `packfuse check --context` computes. Run it again when that changes; a test compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from packfuse.models.cache_size import cache_size

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "assets" / "memory.json"
PAGE = ROOT / "docs" / "memory.md"

_LLAMA_3_2 = {"vocab_size": 128_256, "num_key_value_heads": 8, "tie_word_embeddings": True}
_QWEN_3 = {
    "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True
}  # fmt: skip
_GEMMA_3 = {
    "vocab_size": 262_144, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256
}  # fmt: skip

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Qwen2.5-Coder-0.5B-Instruct": ("qwen2", 494_032_768, {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }),
    "SmolLM2-135M-Instruct": ("llama", 134_515_008, {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    }),
    "gemma-3-270m-it": ("gemma3_text", 268_098_176, {
        **_GEMMA_3, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
    }),
    "gemma-3-1b-it": ("gemma3_text", 999_885_952, {
        **_GEMMA_3, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
    }),
    "Qwen3-0.6B": ("qwen3", 596_049_920, {
        **_QWEN_3, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16,
    }),
    "Qwen3-1.7B": ("qwen3", 1_720_574_976, {
        **_QWEN_3, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 28, "num_attention_heads": 16,
    }),
    "Qwen3-4B": ("qwen3", 4_022_468_096, {
        **_QWEN_3, "hidden_size": 2560, "intermediate_size": 9728,
        "num_hidden_layers": 36, "num_attention_heads": 32,
    }),
    "Qwen3-8B": ("qwen3", 8_190_735_360, {
        **_QWEN_3, "hidden_size": 4096, "intermediate_size": 12_288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "tie_word_embeddings": False,
    }),
    "Llama-3.2-1B-Instruct": ("llama", 1_235_814_400, {
        **_LLAMA_3_2, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64,
    }),
    "Llama-3.2-3B-Instruct": ("llama", 3_212_749_824, {
        **_LLAMA_3_2, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128,
    }),
    "SmolLM2-1.7B-Instruct": ("llama", 1_711_376_384, {
        "vocab_size": 49_152, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 32,
        "tie_word_embeddings": True,
    }),
    "SmolLM3-3B": ("smollm3", 3_075_098_624, {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 11_008,
        "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }),
}  # fmt: skip
"""By name: model type, published number of parameters, and configuration."""


def computed() -> dict[str, dict[str, int]]:
    """Parameters, and bytes of the KV cache of a token in bfloat16, by model.

    Raises:
        ValueError: for a configuration that gives another number of parameters than published.
    """
    found = {}
    for name, (kind, published, fields) in MODELS.items():
        config = AutoConfig.for_model(kind, **fields)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        if parameters != published:
            raise ValueError(f"{name} has {parameters:,} parameters, published are {published:,}")
        size = cache_size(config, "bfloat16")
        found[name] = {"parameters": parameters, "kv_bytes": size.per_token}
    return found


def table(models: dict[str, dict[str, int]]) -> str:
    """The table of the page, in bfloat16."""
    lines = [
        "| model | parameters | weights | KV cache of 1,000 tokens | of 16 answers with 4,096 |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, sizes in models.items():
        weights, token = 2 * sizes["parameters"], sizes["kv_bytes"]
        cells = (f"{value / 1e9:.2f} GB" for value in (weights, 16 * 4096 * token))
        shown, all_rows = cells
        thousand = f"{1000 * token / 1e6:.0f} MB"
        count = f"{sizes['parameters'] / 1e9:.2f} B"
        lines.append(f"| {name} | {count} | {shown} | {thousand} | {all_rows} |")
    return "\n".join(lines)


def filled(page: str, models: dict[str, dict[str, int]]) -> str:
    """The page with its table."""
    made = f"<!-- memory -->\n{table(models)}\n<!-- /memory -->"
    return re.sub("<!-- memory -->.*<!-- /memory -->", made, page, flags=re.DOTALL)


def main() -> None:
    """Write the data and the table."""
    models = computed()
    DATA.write_text(json.dumps(models, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), models), encoding="utf-8")


if __name__ == "__main__":
    main()
