"""The arguments of one call: what a front end was set to, and what the call says instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packfuse.errors import ConfigError

_LENGTHS = ("max_length", "generation_config")


def merged(settings: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's own arguments before the settings; None means: as set.

    Args:
        settings: What counts unless the call says otherwise.
        call: The keyword arguments of the call.

    Raises:
        ConfigError: if a call names its length twice.

    Example:
        >>> merged({"max_new_tokens": 256, "temperature": 0.7}, {"max_tokens": 8})
        {'temperature': 0.7, 'max_new_tokens': 8}
    """
    own, usual = _plain(call), _plain(settings)
    # A call that says the same thing in other words is not overruled by a setting.
    if any(name in own for name in _LENGTHS):
        usual.pop("max_new_tokens", None)
    if "weighting" in own:
        usual.pop("weights", None)
    return {**{k: v for k, v in usual.items() if k not in own}, **own}


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in arguments.items() if value is not None}
    if "max_tokens" in plain:
        length = plain.pop("max_tokens")
        if plain.setdefault("max_new_tokens", length) != length:
            raise ConfigError(
                f"max_tokens={length!r} and max_new_tokens={plain['max_new_tokens']!r} are the "
                "same setting",
                hint="give one of them",
            )
    return plain
