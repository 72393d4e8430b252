"""Which class of transformers loads a model as a causal language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig

from packfuse.hf_compat.models import causal_architectures, composite_architectures


def auto_class(config: PreTrainedConfig) -> Any | None:
    """The class whose `from_pretrained` loads a model that generates text after text.

    The class that `architectures` names is not decisive: models of several media are published
    under a class for all of them, and transformers may have one for their language model alone.

    Returns:
        The class; None if the model is no causal language model.
    """
    own = set(config.architectures or [])
    remote = getattr(config, "auto_map", None) or {}
    causal, composite = causal_architectures(), composite_architectures()
    if "AutoModelForCausalLM" in remote or own & set(causal.values()):
        return AutoModelForCausalLM
    if getattr(config, "is_encoder_decoder", False):
        return None
    if config.model_type in causal and (not own or is_composite(config)):
        return AutoModelForCausalLM
    if not own and not remote and config.model_type not in composite:
        return AutoModelForCausalLM
    return AutoModelForMultimodalLM if is_composite(config) else None


def is_composite(config: PreTrainedConfig) -> bool:
    """Whether a model is published as one of text and other media."""
    return bool(set(config.architectures or []) & set(composite_architectures().values()))
