"""Loading members from hub ids, folders, GGUF files or loaded (model, tokenizer) pairs."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from packfuse.errors import ConfigError, LoadError
from packfuse.hf_compat import causal_architectures, quantization_config
from packfuse.models.hf_member import HFMember
from packfuse.settings import LoadSettings, MemberSettings, PackConfig
from packfuse.text.vocabulary import Vocabulary

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_given(models: Sequence[Any]) -> list[HFMember] | None:
    """Members of loaded (model, tokenizer) pairs; None if `models` are names.

    Raises:
        ConfigError: if `models` is not a list, or mixes pairs and names.
    """
    if isinstance(models, str | bytes | os.PathLike):
        raise ConfigError("`models` is a list", hint=f"write [{models!r}]")
    ready = [item for item in models if isinstance(item, tuple)]
    if not ready:
        return None
    if len(ready) < len(models):
        raise ConfigError("loaded models and names cannot be mixed", hint="load them all")
    names = unique_names([short_name(str(model.name_or_path or "member")) for model, _ in ready])
    return [wrap(name, *pair) for name, pair in zip(names, ready, strict=True)]


def member_entry(model: Any) -> dict[str, Any]:
    """The fields of `MemberSettings` for a hub id, a path, or a mapping of those fields."""
    return dict(model) if isinstance(model, Mapping) else {"model": os.fspath(model)}


def refuse_loading(overrides: Iterable[str]) -> None:
    """Raise an error for settings that have no effect on loaded models.

    Raises:
        ConfigError: if there are any; the message names them.
    """
    useless = sorted({*overrides} & {*LoadSettings.model_fields, "quantization_config"})
    if useless:
        raise ConfigError(
            f"{', '.join(useless)} would have no effect on models that are loaded already",
            hint="set them when you load the models",
        )


def load_members(config: PackConfig) -> list[HFMember]:
    """Load every member of a pack.

    Raises:
        LoadError: if a member fails to load; those loaded before it are freed.
    """
    names = unique_names([m.name or short_name(m.model) for m in config.members])
    members: list[HFMember] = []
    try:
        with _collector_paused():
            for name, member in zip(names, config.members, strict=True):
                members.append(load_member(name, member, config))
    except BaseException:
        members.clear()
        gc.collect()
        raise
    return members


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection: parsing a tokenizer makes a million objects, all of them in use."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_member(name: str, member: MemberSettings, pack: PackConfig) -> HFMember:
    """Load one member.

    Args:
        name: Its name in the pack.
        member: Its settings, which take precedence.
        pack: Settings of the pack.

    Raises:
        LoadError: if it cannot be loaded; the message names the member and the reason.
    """
    folder, gguf = split_gguf(member.model)
    shared: dict[str, Any] = {
        "revision": member.revision,
        "trust_remote_code": pack.trust_remote_code,
    }
    shared = {key: value for key, value in shared.items() if value is not None}
    if gguf:
        shared["gguf_file"] = gguf
    try:
        _check_causal(name, folder, shared)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=member.dtype or pack.dtype,
            device_map=member.device_map or pack.device_map,
            quantization_config=_quantization(member.quantization or pack.quantization),
            use_safetensors=None if pack.unsafe_weights or gguf else True,
            **shared,
        )
        source = member.tokenizer or folder
        if member.tokenizer:
            shared.pop("gguf_file", None)
        tokenizer = AutoTokenizer.from_pretrained(source, **shared)
    except LoadError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise LoadError(
            f"member {name!r} cannot be loaded from {member.model!r}: {error}",
            hint=_next_step(error),
        ) from error
    return wrap(name, model, tokenizer)


def wrap(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HFMember:
    """A member from a loaded model and its tokenizer."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    end_ids = [ends] if isinstance(ends, int) else list(ends or ())
    vocab_size = int(model.config.get_text_config().vocab_size)
    return HFMember(name, model, Vocabulary(tokenizer, vocab_size, end_ids))


def split_gguf(model: str) -> tuple[str, str | None]:
    """The folder and the file name of a GGUF path; any other model and None."""
    if model.endswith(".gguf"):
        path = Path(model)
        return str(path.parent), path.name
    return model, None


def short_name(model: str) -> str:
    """The last part of a hub id or a path.

    Example:
        >>> short_name("google/gemma-3-270m")
        'gemma-3-270m'
    """
    return Path(model.rstrip("/")).name.removesuffix(".gguf") or model


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number appended to each that occurred before.

    Example:
        >>> unique_names(["a", "b", "a"])
        ['a', 'b', 'a-2']
    """
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def is_causal(config: Any) -> bool:
    """Whether a configuration is of a causal language model; True if it does not name a class."""
    own = list(config.architectures or [])
    known = set(causal_architectures().values())
    return not own or bool(known.intersection(own)) or hasattr(config, "auto_map")


def _check_causal(name: str, folder: str, shared: dict[str, Any]) -> None:
    config = AutoConfig.from_pretrained(folder, **shared)
    if not is_causal(config):
        raise LoadError(
            f"member {name!r} is a {config.architectures[0]}, not a causal language model",
            hint="use a model whose architecture ends in ForCausalLM",
        )


def _quantization(settings: dict[str, Any] | Any | None) -> Any:
    if settings is None or not isinstance(settings, dict):
        return settings
    if "quant_method" not in settings:
        raise ConfigError(
            "quantization has no `quant_method`", hint="for example bitsandbytes_4bit"
        )
    return quantization_config(settings)


def _next_step(error: BaseException) -> str:
    text = str(error)
    if "safetensors" in text:
        return "the weights are not safetensors; unsafe_weights=True accepts others at your risk"
    if "trust_remote_code" in text:
        return "it needs code from its repository; trust_remote_code=True runs it at your risk"
    if isinstance(error, torch.OutOfMemoryError):
        return "use a smaller dtype, a quantization, or device_map='auto'"
    return "check the id or the path; `packfuse check` inspects models without loading them"
