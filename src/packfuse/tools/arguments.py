"""The arguments of one call: settings of a front end, and arguments of the call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from packfuse.causal_lm.arguments import SAMPLING, fields_of, nearest_argument
from packfuse.errors import ConfigError
from packfuse.generation.call_arguments import known_arguments

ALIASES = {"max_tokens": "max_new_tokens", "n": "num_return_sequences", "timeout": "max_time"}
"""Names of other APIs for arguments of transformers' `generate`."""
TURN_ARGUMENTS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
"""Arguments of `Turn` besides those of `Pack.generate`."""
_LENGTHS = {"max_new_tokens", "max_length"}


def merge_arguments(settings: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the settings of a front end with the arguments of a call, which take precedence.

    Arguments that are None are ignored. Those in `ALIASES` get transformers' names.

    Args:
        settings: The settings of the front end.
        call: The keyword arguments of the call.

    Raises:
        ConfigError: for different values of one argument under two names.

    Example:
        >>> merge_arguments({"max_new_tokens": 256, "temperature": 0.7}, {"max_tokens": 8})
        {'temperature': 0.7, 'max_new_tokens': 8}
    """
    own, defaults = _normalized(call), _normalized(settings)
    replaced = {*own, *_configured(own)}
    # These arguments of a call also replace settings with another name.
    if _LENGTHS & replaced:
        replaced |= _LENGTHS
    if "weighting" in own:
        replaced.add("weights")
    return {**{k: v for k, v in defaults.items() if k not in replaced}, **own}


def _configured(call: Mapping[str, Any]) -> set[str]:
    """The settings that the `generation_config` of a call replaces."""
    config = call.get("generation_config")
    if config is None:
        return set()
    fields = fields_of(config)
    greedy = fields.get("do_sample") is False or fields.get("temperature") == 0
    return {*fields, *(SAMPLING if greedy else ())}


def _normalized(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not None, under transformers' names."""
    found = {name: value for name, value in arguments.items() if value is not None}
    for alias, name in ALIASES.items():
        if alias in found:
            value = found.pop(alias)
            if found.setdefault(name, value) != value:
                raise ConfigError(
                    f"{alias}={value!r} and {name}={found[name]!r} are the same setting",
                    hint="give one of them",
                )
    return found


@cache
def call_arguments() -> frozenset[str]:
    """The names of all arguments of `Pack.generate`, and their aliases.

    Those of transformers that a pack does not honor are among them: their errors say why.
    """
    return known_arguments().union(ALIASES)


def check_names(owner: str, given: Iterable[str], further: Iterable[str] = ()) -> None:
    """Refuse names that are no arguments of a call.

    Args:
        owner: What was given them, for the error.
        given: The names.
        further: Names that are known besides the arguments of `Pack.generate`.

    Raises:
        ConfigError: naming the first unknown name and the nearest known one.
    """
    known = call_arguments().union(further)
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{owner} has no setting {name!r}", hint=nearest_argument(name, known)
            )


def as_fields(
    owner: str,
    sources: Iterable[Mapping[str, Any]],
    fields: Collection[str],
    further: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the settings of a front end into its fields and other arguments of a call.

    Args:
        owner: The front end, for errors.
        sources: Settings by name. A name may be another one of a field (`ALIASES`).
        fields: The names of the fields.
        further: Names that are known besides the fields and the arguments of `Pack.generate`.

    Returns:
        Values by field, and the other arguments without those that are None.

    Raises:
        ConfigError: for an unknown name, or two values of one setting.

    Example:
        >>> as_fields("it", [{"max_new_tokens": 8, "top_p": 0.9}], {"max_tokens"})
        ({'max_tokens': 8}, {'top_p': 0.9})
    """
    by_name = {ALIASES.get(field, field): field for field in fields}
    found: dict[str, Any] = {}
    for source in sources:
        check_names(owner, source, {*fields, *further})
        for given, value in source.items():
            name = ALIASES.get(given, given)
            name = given if given in fields else by_name.get(name, name)
            before = found.setdefault(name, value)
            if before is None:
                found[name] = value
            elif value is not None and value is not before and value != before:
                raise ConfigError(
                    f"{owner} has two values of {name}: {before!r} and {value!r}",
                    hint="give one of them",
                )
    own = {name: value for name, value in found.items() if name in fields}
    rest = {k: v for k, v in found.items() if k not in fields and v is not None}
    return own, rest
