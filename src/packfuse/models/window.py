"""How much text a model can read."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


def context_window(config: PreTrainedConfig, tokenizer: Any) -> int:
    """The most tokens that a model can read, by its configuration or else its tokenizer."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if value := getattr(text, name, None):
            return int(value)
    return int(min(tokenizer.model_max_length, 2**31 - 1))
