"""The configuration of a pack as a transformers model."""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedConfig

from packfuse.fusion.engine import Engine
from packfuse.models.member import Member


class FusedConfig(PreTrainedConfig):
    """Configuration with the reference's vocabulary and the pack's context window."""

    model_type = "packfuse"
    vocab_size: int = 0
    max_position_embeddings: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    is_encoder_decoder: bool = False


def fused_config(engine: Engine, reference: Member) -> FusedConfig:
    """The configuration of a pack; its context window is the smallest of its members'."""
    model = reference.model
    own = reference.tokenizer if model is None else model.config.get_text_config()
    config = FusedConfig(
        vocab_size=engine.reference.columns,
        max_position_embeddings=min(member.context_window for member in engine.members),
        bos_token_id=getattr(own, "bos_token_id", None),
        eos_token_id=_end_id(reference),
        pad_token_id=_pad_id(reference),
    )
    config.architectures = ["FusedForCausalLM"]
    return config


def fused_generation_config(reference: Member) -> GenerationConfig:
    """The reference's special token ids, without its sampling defaults."""
    return GenerationConfig(
        bos_token_id=reference.tokenizer.bos_token_id,
        eos_token_id=_end_id(reference),
        pad_token_id=_pad_id(reference),
    )


def _end_id(reference: Member) -> int | list[int] | None:
    """The id that ends a text; a list where several do."""
    ends = list(reference.vocabulary.end_ids)
    return ends[0] if len(ends) == 1 else ends or None


def _pad_id(reference: Member) -> int | None:
    ends = reference.vocabulary.end_ids
    own = reference.tokenizer.pad_token_id
    return own if own is not None else (ends[0] if ends else None)
