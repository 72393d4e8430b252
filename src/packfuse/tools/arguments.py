"""The arguments of one call: settings of a front end, and arguments of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packfuse.errors import ConfigError

_LENGTHS = ("max_length", "generation_config")


def merge_arguments(settings: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of a front end with the arguments of a call, which take precedence.

    Arguments that are None are ignored. `max_tokens` becomes `max_new_tokens`.

    Args:
        settings: The settings of the front end.
        call: The keyword arguments of the call.

    Raises:
        ConfigError: for different values of `max_tokens` and `max_new_tokens`.

    Example:
        >>> merge_arguments({"max_new_tokens": 256, "temperature": 0.7}, {"max_tokens": 8})
        {'temperature': 0.7, 'max_new_tokens': 8}
    """
    own, defaults = _normalized(call), _normalized(settings)
    # These arguments of a call also replace settings with another name.
    if any(name in own for name in _LENGTHS):
        defaults.pop("max_new_tokens", None)
    if "weighting" in own:
        defaults.pop("weights", None)
    return {**{k: v for k, v in defaults.items() if k not in own}, **own}


def _normalized(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not None, with `max_tokens` as `max_new_tokens`."""
    found = {name: value for name, value in arguments.items() if value is not None}
    if "max_tokens" in found:
        length = found.pop("max_tokens")
        if found.setdefault("max_new_tokens", length) != length:
            raise ConfigError(
                f"max_tokens={length!r} and max_new_tokens={found['max_new_tokens']!r} are the "
                "same setting",
                hint="give one of them",
            )
    return found
