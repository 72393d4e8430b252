"""The fields of a request: which are honored, which have no effect, and which are refused."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from packfuse.causal_lm.arguments import nearest_argument
from packfuse.server.problems import RequestError
from packfuse.tools.logprobs import take_logprobs

OWN = (
    "weighting",
    "weights",
    "fusion",
    "gate",
    "draft",
    "trace",
    "constraint",
    "top_k",
    "min_p",
    "repetition_penalty",
    "chat_template_kwargs",
    "continue_final_message",
)
"""Fields that OpenAI's API does not have; they are arguments of `Pack.generate`."""
_SHARED = (
    "model", "stream", "stream_options", "temperature", "top_p", "stop", "seed", "n", "max_tokens",
    "logit_bias", "logprobs",
)  # fmt: skip
CHAT = (
    *_SHARED, "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", "response_format",
)  # fmt: skip
COMPLETION = (*_SHARED, "prompt")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "functions": ([],),
}
"""Values with which a field asks for nothing that a pack does not do."""
_WITHOUT_EFFECT = ("user", "safety_identifier", "prompt_cache_key", "metadata")
"""Fields that are about the client's books, and change no answer."""
_MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Fields:
    """The checked fields of a request.

    Attributes:
        stream: Whether the answer is streamed.
        include_usage: Whether the stream ends with the numbers of tokens.
        logprobs: Whether log-probabilities are wanted.
        trace: Whether the steps are wanted.
        arguments: Arguments of `Turn` or `Completion`.
    """

    stream: bool
    include_usage: bool
    logprobs: bool
    trace: bool
    arguments: dict[str, Any]


def chat_fields(body: Mapping[str, Any], max_tokens: int) -> Fields:
    """The fields of a chat completion.

    Args:
        body: The request.
        max_tokens: Most tokens of an answer if the request does not say.

    Raises:
        RequestError: naming a field that is unknown, malformed or not supported.
    """
    given = _known(body, CHAT, _names(chat_create_params))
    both = [given.pop(name, None) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((value for value in both if value is not None), max_tokens)
    if None not in both and both[0] != both[1]:
        raise RequestError(
            400, "max_tokens and max_completion_tokens differ; give one of them", "max_tokens"
        )
    _check_top(given, "top_logprobs")
    return _fields(given, limit, take_logprobs)


def completion_fields(body: Mapping[str, Any], max_tokens: int) -> Fields:
    """The fields of a completion; see `chat_fields`."""
    given = _known(body, COMPLETION, _names(completion_create_params))
    limit = given.pop("max_tokens", max_tokens)

    def take(arguments: dict[str, Any]) -> bool:
        _check_top(arguments, "logprobs")
        top = arguments.pop("logprobs", None)
        if top is not None:
            arguments["top_logprobs"] = top
        return top is not None

    return _fields(given, limit, take)


def _fields(given: dict[str, Any], limit: Any, take: Callable[[dict[str, Any]], bool]) -> Fields:
    if not _is_count(limit) or limit < 1:
        raise RequestError(400, f"max_tokens={limit!r} is not a number of tokens", "max_tokens")
    stream = _flag(given, "stream")
    options = given.pop("stream_options", None) or {}
    if not isinstance(options, Mapping) or set(options) - {"include_usage", "include_obfuscation"}:
        raise RequestError(400, "stream_options has include_usage only", "stream_options")
    if options and not stream:
        raise RequestError(400, "stream_options is for streams; set stream", "stream_options")
    for name in ("messages", "prompt", "model"):
        given.pop(name, None)
    trace = _flag(given, "trace")
    logprobs = take(given)
    arguments = {**given, "max_new_tokens": limit, "trace": trace or logprobs}
    count = arguments.pop("n", 1)
    if not _is_count(count) or not 1 <= count <= 128:
        raise RequestError(400, f"n={count!r} is not a number of answers from 1 to 128", "n")
    _sampling(arguments)
    if count > 1:
        arguments["num_return_sequences"] = count
        # Several greedy answers would be equal.
        if not arguments.get("temperature") and "top_p" not in arguments:
            raise RequestError(400, f"n={count} needs a temperature above 0", "n")
    if (bias := arguments.pop("logit_bias", None)) is not None:
        arguments.update(_bias(bias))
    usage = bool(options.get("include_usage"))
    return Fields(stream, usage, logprobs, trace, arguments)


def _known(
    body: Mapping[str, Any], honored: tuple[str, ...], of_openai: frozenset[str]
) -> dict[str, Any]:
    """The fields that are honored; the others must be neutral."""
    found: dict[str, Any] = {}
    for name, value in body.items():
        if name in honored or name in OWN:
            if value is not None:
                found[name] = value
        elif value is None or name in _WITHOUT_EFFECT or value in _NEUTRAL.get(name, ()):
            continue
        elif name in of_openai:
            raise RequestError(
                400, f"{name} is not supported; leave it out", name, "unsupported_parameter"
            )
        else:
            hint = nearest_argument(name, {*honored, *OWN})
            raise RequestError(
                400, f"there is no field {name!r} ({hint})", name, "unknown_parameter"
            )
    return found


def _sampling(arguments: dict[str, Any]) -> None:
    """OpenAI's sampling: from all tokens; `top_p` of 1 says nothing."""
    if arguments.get("top_p") == 1:
        del arguments["top_p"]
    if arguments.get("temperature") or "top_p" in arguments:
        arguments.setdefault("top_k", 0)


def _bias(bias: Any) -> dict[str, Any]:
    """`logit_bias` as transformers' `sequence_bias`; ids are the default reference's."""
    try:
        pairs = {(int(token),): float(value) for token, value in dict(bias).items()}
    except (TypeError, ValueError) as error:
        raise RequestError(400, "logit_bias maps token ids to numbers", "logit_bias") from error
    if any(not -100 <= value <= 100 for value in pairs.values()):
        raise RequestError(400, "values of logit_bias are from -100 to 100", "logit_bias")
    return {"sequence_bias": pairs} if pairs else {}


def _check_top(given: Mapping[str, Any], name: str) -> None:
    top = given.get(name)
    if top is not None and not (_is_count(top) and top <= _MAX_LOGPROBS):
        raise RequestError(400, f"{name}={top!r} is not a number up to {_MAX_LOGPROBS}", name)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise RequestError(400, f"{name}={value!r} is not true or false", name)
    return bool(value)


@cache
def _names(module: Any) -> frozenset[str]:
    """The names of all fields that OpenAI's package knows for a request."""
    return frozenset(
        name
        for kind in typing.get_args(module.CompletionCreateParams)
        for name in typing.get_type_hints(kind)
    )
