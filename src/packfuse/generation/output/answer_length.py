"""Checks of the length that a call asks for, once its prompt has been tokenized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packfuse.errors import ConfigError


def check_length(given: Mapping[str, Any], prompt: int) -> None:
    """Refuse lengths that leave no token for an answer, or that no answer can have.

    Args:
        given: Arguments of transformers' `generate`.
        prompt: Number of tokens of the prompt.

    Raises:
        ConfigError: naming the argument.
    """
    longest, most = _new_tokens(given, "max_new_tokens", "max_length", prompt)
    shortest, least = _new_tokens(given, "min_new_tokens", "min_length", prompt)
    if most is not None and most <= 0:
        raise ConfigError(
            f"{longest} leaves no token for an answer: the prompt has {prompt}",
            hint="use max_new_tokens, which counts the answer only",
        )
    if most is not None and least is not None and least > most:
        raise ConfigError(
            f"{shortest} is more than {longest} allows: at least {least} and at most {most} "
            "new tokens",
            hint="raise the maximum, or leave out the minimum",
        )


def _new_tokens(
    given: Mapping[str, Any], new: str, whole: str, prompt: int
) -> tuple[str, int | None]:
    """A limit of the length of an answer as it was given, and in new tokens; None for no limit."""
    if given.get(new) is not None:
        return f"{new}={given[new]}", int(given[new])
    if given.get(whole) is not None:
        return f"{whole}={given[whole]}", int(given[whole]) - prompt
    return "", None
