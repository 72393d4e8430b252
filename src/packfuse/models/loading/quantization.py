"""Quantization configurations of transformers, made from plain settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.quantizers.auto import AutoQuantizationConfig

from packfuse.errors import ConfigError

_BITS = {"bitsandbytes_4bit": "load_in_4bit", "bitsandbytes_8bit": "load_in_8bit"}
"""Methods that transformers tells apart by a field, and the field."""
_EXAMPLE = "for example {load_in_4bit: true}, or {quant_method: torchao, ...}"


def make_quantization(settings: Mapping[str, Any] | None) -> Any | None:
    """The configuration of transformers for plain settings; None for none.

    Raises:
        ConfigError: for settings that name no known method, have fields that the method does not
            know, or would not quantize anything.
    """
    if settings is None:
        return None
    given = dict(settings)
    flag = _BITS.get(str(given.get("quant_method")))
    if flag:
        given = {**given, "quant_method": "bitsandbytes", flag: given.get(flag, True)}
    loads = any(given.get(name) for name in _BITS.values())
    if given.get("quant_method") == "bitsandbytes" and not loads:
        raise ConfigError(f"quantization {given} quantizes nothing", hint=_EXAMPLE)
    if "quant_method" not in given and not loads:
        raise ConfigError("quantization has no `quant_method`", hint=_EXAMPLE)
    try:
        made = AutoQuantizationConfig.from_dict(given)
    except ImportError as error:
        raise ConfigError(f"quantization {given}: {error}") from error
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"quantization {given}: {error}", hint=_EXAMPLE) from error
    if unknown := [name for name in given if not _knows(made, name)]:
        raise ConfigError(
            f"quantization: {type(made).__name__} has no {' and no '.join(unknown)}",
            hint="see its documentation in transformers",
        )
    return made


def unpacked() -> Any | None:
    """The configuration with which a GGUF file is read as plain weights.

    Some versions of transformers keep weights packed where they can, with kernels that they would
    fetch from the hub. Others, for which this is None, always unpack them.
    """
    try:
        return AutoQuantizationConfig.from_dict({"quant_method": "gguf", "dequantize": True})
    except ValueError:
        return None


def _knows(made: Any, name: str) -> bool:
    """Whether a configuration has a field, or had one before it was written to a file."""
    fields = {*made.to_dict(), *inspect.signature(type(made)).parameters}
    return name.startswith("_") or name in fields or hasattr(made, name)
