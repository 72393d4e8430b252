"""The arguments of `Pack.generate`: which there are, and how they are merged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import GenerationMixin

from packfuse.causal_lm.arguments import (
    FOREIGN_CODE,
    SAMPLING,
    GenerationArguments,
    check_names,
    check_values,
    fields_of,
    first_id,
    is_default,
    short,
    transformers_names,
)
from packfuse.errors import ConfigError, UnsupportedError
from packfuse.text.chats.messages import check_text

MAX_NEW_TOKENS = 256
"""Default for the maximum length of an answer, in tokens."""

SETTINGS = ("fusion", "weighting", "weights", "gate", "draft")
"""Arguments that replace settings of the pack."""
CHAT = ("chat_template_kwargs", "continue_final_message")
"""Arguments for chats."""
OWN = (*SETTINGS, *CHAT, "constraint", "stop", "seed", "trace", "top_logprobs")
"""Arguments that transformers does not have."""

SCORE = ("fusion", "weighting", "weights", "gate")
"""Arguments that have an effect on a score."""
WEIGH = ("fusion", *CHAT)
"""Arguments that have an effect on weights."""

_INPUTS = ("inputs", "input_ids", "attention_mask", "inputs_embeds", "position_ids")
_CACHES = ("cache", "past_key_values")
_PARAMETERS = frozenset(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
_TRANSFORMERS = {*_PARAMETERS, *_INPUTS, *_CACHES, "trust_remote_code", "labels", "logits_to_keep"}
_LENGTHS = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))
_BEAMS = ("length_penalty", "early_stopping")


def _several_beams(given: Mapping[str, Any]) -> bool:
    return int(given.get("num_beams", 1)) > 1


def _given(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda given: any(given.get(name) is not None for name in names)


_NEEDS: dict[str, tuple[Callable[[Mapping[str, Any]], bool], str]] = {
    **dict.fromkeys(_BEAMS, (_several_beams, "num_beams above 1")),
    **dict.fromkeys(
        (
            "assistant_tokenizer",
            "num_assistant_tokens",
            "num_assistant_tokens_schedule",
            "assistant_confidence_threshold",
            "assistant_lookbehind",
            "target_lookbehind",
        ),
        (_given("assistant_model"), "assistant_model"),
    ),
    "max_matching_ngram_size": (_given("prompt_lookup_num_tokens"), "prompt_lookup_num_tokens"),
    "tokenizer": (_given("assistant_model", "stop_strings"), "stop_strings or assistant_model"),
}
"""Arguments without an effect of their own: what has to be given beside them."""


def known_arguments() -> frozenset[str]:
    """The names of all arguments of `Pack.generate`, and those that it refuses with a reason."""
    honored = {*GenerationArguments.model_fields, "generation_config"}
    return frozenset({*OWN, *honored, *_TRANSFORMERS, *transformers_names()})


def only(arguments: Collection[str], known: Collection[str], what: str) -> None:
    """Refuse arguments that have no effect in a call.

    Args:
        arguments: Their names.
        known: Names with an effect.
        what: The call, for the message.

    Raises:
        ConfigError: naming the first that has none.
    """
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"{name} has no effect on {what}", hint=f"arguments: {', '.join(known)}"
            )


def generation_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for transformers' `generate`, checked; those in `OWN` are left out.

    The fields of a `generation_config` count as if they were given by name; arguments that are
    given by name count instead of them.

    Raises:
        ConfigError: for unknown names, values out of range, and arguments without an effect.
        UnsupportedError: for what a pack cannot honor.
    """
    rest = {name: value for name, value in arguments.items() if name not in OWN}
    config = rest.pop("generation_config", None)
    explicit = _checked(rest)
    given = explicit if config is None else _merged(explicit, _checked(fields_of(config)))
    for name, (has_effect, needed) in _NEEDS.items():
        if name in given and not is_default(name, given[name]) and not has_effect(given):
            raise ConfigError(
                f"{name}={short(given[name])} has no effect without {needed}",
                hint=f"leave out {name}",
            )
    if "assistant_model" not in given:
        given.pop("tokenizer", None)  # stop strings are found in text
    if "pad_token_id" in given:
        given["pad_token_id"] = first_id(given["pad_token_id"])
    return _decoding(given)


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with checked names and values, without those that say nothing."""
    known = {*_TRANSFORMERS, *transformers_names()}
    check_names(arguments, {*known, *OWN})
    for name, value in arguments.items():
        if name in known and name not in GenerationArguments.model_fields:
            _refuse(name, value)
    return check_values(
        {n: v for n, v in arguments.items() if n in GenerationArguments.model_fields}
    )


def _refuse(name: str, value: Any) -> None:
    """Refuse an argument of transformers that a pack does not honor, unless it says nothing."""
    if is_default(name, value):
        return
    shown = f"{name}={short(value)}"
    if name in (*_INPUTS, *_CACHES):
        raise UnsupportedError(
            f"{shown}: the prompt of a pack is text, which every member tokenizes",
            hint="pass text; pack.model.generate takes token ids",
        )
    if name in FOREIGN_CODE:
        raise UnsupportedError(
            f"{shown}: a call cannot run code that comes with a model",
            hint="pack.model.generate takes a function of your own as custom_generate",
        )
    raise UnsupportedError(
        f"{shown} has no effect on an Answer",
        hint="pack.model.generate has the outputs of transformers; what it cannot honor it refuses",
    )


def _merged(explicit: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Arguments given by name over the fields of a configuration."""
    dropped: set[str] = set()
    for names in _LENGTHS:
        if any(name in explicit for name in names):
            dropped.update(names)
    if explicit.get("do_sample") is False or explicit.get("temperature") == 0:
        dropped.update(SAMPLING)
    elif any(name in explicit for name in SAMPLING):
        explicit = {"do_sample": True, **explicit}
    if explicit.get("do_sample") and fields.get("temperature") == 0:
        dropped.add("temperature")
    if explicit.get("num_beams") == 1:
        dropped.update((*_BEAMS, "num_return_sequences"))
    return {**{name: value for name, value in fields.items() if name not in dropped}, **explicit}


def _decoding(given: dict[str, Any]) -> dict[str, Any]:
    """Set `do_sample` from the sampling arguments (temperature 0 is greedy), and the length."""
    if given.get("temperature") == 0:
        given = {name: value for name, value in given.items() if name not in SAMPLING}
        given["do_sample"] = False
    given.setdefault("do_sample", any(name in given for name in SAMPLING))
    if not any(name in given for name in _LENGTHS[0]):
        given["max_new_tokens"] = MAX_NEW_TOKENS
    return given


def stop_strings(*given: Any) -> tuple[str, ...]:
    """Stop strings from what callers may pass: a text, a list of texts, or None.

    Raises:
        ConfigError: for anything else, and empty texts.
        PromptError: for texts with lone surrogates.
    """
    found: list[str] = []
    for stop in given:
        if stop is None:
            continue
        if not isinstance(stop, str | list | tuple):
            raise ConfigError(f"stop={short(stop)} is not a list of texts", hint="write ['...']")
        for item in [stop] if isinstance(stop, str) else stop:
            if not isinstance(item, str) or not item:
                raise ConfigError(f"{short(item)} cannot be a stop string", hint="leave it out")
            found.append(check_text(item, "a stop string"))
    return tuple(dict.fromkeys(found))
