"""Log-probabilities of generated tokens in the layout of OpenAI's chat API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packfuse.errors import ConfigError
from packfuse.generation.output.result import TokenLogprob, TraceStep


def take_logprobs(arguments: dict[str, Any]) -> bool:
    """Replace OpenAI's `logprobs` among the arguments of a call, in place.

    Args:
        arguments: Arguments of a call; afterwards they are arguments of `Pack.generate`.

    Returns:
        Whether the caller wants log-probabilities.

    Raises:
        ConfigError: for `top_logprobs` beside `logprobs=False`.
    """
    wanted = arguments.pop("logprobs", None)
    top = arguments.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise ConfigError(f"logprobs={wanted!r} is not a bool", hint="top_logprobs has the number")
    if wanted is False and top:
        raise ConfigError(f"top_logprobs={top!r} needs logprobs=True", hint="set both, or none")
    if wanted is False:
        arguments.pop("top_logprobs", None)
    elif wanted:
        arguments.setdefault("top_logprobs", 0)
    return "top_logprobs" in arguments


def openai_logprobs(steps: Iterable[TraceStep]) -> dict[str, Any]:
    """`{"content": [...]}` with one entry for each step, as plain JSON types."""
    return {
        "content": [
            {**_entry(step.token), "top_logprobs": [_entry(other) for other in step.alternatives]}
            for step in steps
        ]
    }


def _entry(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.utf8), "logprob": token.logprob}
