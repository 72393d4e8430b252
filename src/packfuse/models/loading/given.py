"""Models that are loaded already: what is inside their wrappers, and what cannot be a member."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from packfuse.errors import ConfigError, LoadError

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def given_pairs(models: Sequence[Any]) -> list[Loaded] | None:
    """The (model, tokenizer) pairs among `models`; None if all of them are names.

    A pair may be a tuple, a list or a text-generation pipeline, and its model may be inside a
    wrapper (see `unwrapped`).

    Raises:
        ConfigError: if `models` is not a list, mixes pairs and names, or has a model alone.
        LoadError: for a model that cannot be a member.
    """
    if isinstance(models, str | bytes | os.PathLike | Pipeline):
        raise ConfigError("`models` is a list", hint=f"write [{_shown(models)}]")
    ready = [item for item in models if not _is_name(item)]
    if not ready:
        return None
    if any(isinstance(item, nn.Module) for item in models):
        raise ConfigError(
            "a loaded model comes with its tokenizer", hint="write [(model, tokenizer), ...]"
        )
    if len(ready) < len(models):
        raise ConfigError("loaded models and names cannot be mixed", hint="load them all")
    return [_pair(item) for item in ready]


def _is_name(item: Any) -> bool:
    """Whether an entry says where a model is, or has the fields that do."""
    loaded = (Pipeline, nn.Module, tuple, list)
    return not isinstance(item, loaded)


def _pair(item: Any) -> Loaded:
    if isinstance(item, Pipeline):
        item = (item.model, item.tokenizer)
    if len(item) != 2 or not isinstance(item[0], nn.Module):
        raise ConfigError(
            f"{_shown(item)} is not a loaded model", hint="write [(model, tokenizer), ...]"
        )
    model, tokenizer = unwrapped(item[0]), item[1]
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        # A processor of several media has a tokenizer for the text.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"{_shown(tokenizer)} is not a tokenizer of transformers",
            hint="write [(model, tokenizer), ...]",
        )
    return model, tokenizer


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside the wrappers of torch.compile, PEFT and data parallelism.

    Adapters that PEFT put into the layers of the model stay there.

    Raises:
        LoadError: if there is no transformers model inside, or if a wrapper changes what it reads.

    Warns:
        RuntimeWarning: if the wrapper of torch.compile is left out.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if isinstance(inner, DataParallel | DistributedDataParallel):
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            warnings.warn(
                "a pack runs a compiled model without the wrapper of torch.compile; "
                "compiled=True compiles its steps",
                RuntimeWarning,
                stacklevel=2,
            )
            inner = inner._orig_mod
        elif _is_peft(inner):
            inner = _inside_peft(inner)
        else:
            raise LoadError(
                f"{type(inner).__name__} is not a transformers model",
                hint="a member is a PreTrainedModel with its tokenizer",
            )
    found: PreTrainedModel = inner
    return found


def _is_peft(model: Any) -> bool:
    """Whether PEFT wraps the model; if it does, it has been imported."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel)


def _inside_peft(model: Any) -> Any:
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise LoadError(
                f"adapter {name!r} ({config.peft_type.value}) puts vectors before the text, which "
                "other members could not read",
                hint="adapters inside the layers (LoRA and others) can be members",
            )
    return model.base_model.model


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | os.PathLike) else type(value).__name__
