"""The arguments of transformers' `generate`: their types and ranges, and what a pack refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import BaseWatermarkingConfig
from transformers.generation.streamers import BaseStreamer

from packfuse.errors import ConfigError
from packfuse.registry import nearest


def _integer(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("it is not a whole number")  # noqa: TRY004 (pydantic then tries a list)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("it is not a number")  # noqa: TRY004 (as above)
    if not math.isfinite(value):
        raise ValueError("it is not finite")
    return value


def _ordered(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError("it is not a list")  # noqa: TRY004 (as above)
    return list(value)


def _pair(value: Any) -> Any:
    return tuple(_ordered(value))


def _biases(value: Any) -> Any:
    """`{(id, ...): bias}`, or the same as `[[[id, ...], bias], ...]`."""
    pairs = value.items() if isinstance(value, Mapping) else _ordered(value)
    return {tuple(_plain(list(_ordered(ids)))): _plain(bias) for ids, bias in pairs}


def _each(check: Callable[[Any], bool], wanted: str) -> BeforeValidator:
    """A list of which every item passes a check."""

    def checked(value: Any) -> Any:
        items = list(value) if isinstance(value, list | tuple) else None
        if items is None or not all(map(check, items)):
            raise ValueError(f"it is not a list of {wanted}")
        return value

    return BeforeValidator(checked)


def _is(check: Callable[[Any], bool], wanted: str) -> BeforeValidator:
    def checked(value: Any) -> Any:
        if not check(value):
            raise ValueError(f"it is not {wanted}")
        return value

    return BeforeValidator(checked)


def _kind(*kinds: type, wanted: str) -> BeforeValidator:
    return _is(lambda value: isinstance(value, kinds), wanted)


Integer = Annotated[int, BeforeValidator(_integer)]
Positive = Annotated[Integer, Field(ge=1)]
Natural = Annotated[Integer, Field(ge=0)]
Rows = Annotated[Integer, Field(ge=1, le=1024)]
Number = Annotated[float, BeforeValidator(_number)]
Share = Annotated[Number, Field(ge=0, le=1)]
PositiveShare = Annotated[Number, Field(gt=0, le=1)]
Cutoff = Annotated[Number, Field(ge=0, lt=1)]
PositiveNumber = Annotated[Number, Field(gt=0)]
Ids = Annotated[list[Natural], BeforeValidator(_ordered), Field(min_length=1)]
SomeIds = Natural | Ids
Texts = str | Annotated[list[str], BeforeValidator(_ordered)]


class GenerationArguments(BaseModel):
    """The arguments that a pack honors, apart from its own; None stands for the default.

    A name that transformers knows and that is not listed here is refused: what it means for a pack
    is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    max_length: Positive | None = None
    max_new_tokens: Positive | None = None
    min_length: Natural | None = None
    min_new_tokens: Natural | None = None
    max_time: PositiveNumber | None = None
    stop_strings: Texts | None = None
    do_sample: StrictBool | None = None
    num_beams: Rows | None = None
    num_return_sequences: Rows | None = None
    early_stopping: StrictBool | Literal["never"] | None = None
    length_penalty: Annotated[Number, Field(ge=-10, le=10)] | None = None
    use_cache: StrictBool | None = None
    cache_implementation: Literal["dynamic"] | None = None
    temperature: Annotated[Number, Field(ge=0)] | None = None
    top_k: Natural | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    top_h: PositiveShare | None = None
    typical_p: PositiveShare | None = None
    epsilon_cutoff: Cutoff | None = None
    eta_cutoff: Cutoff | None = None
    repetition_penalty: PositiveNumber | None = None
    encoder_repetition_penalty: PositiveNumber | None = None
    no_repeat_ngram_size: Natural | None = None
    encoder_no_repeat_ngram_size: Natural | None = None
    exponential_decay_length_penalty: (
        Annotated[tuple[Natural, PositiveNumber], BeforeValidator(_pair)] | None
    ) = None
    guidance_scale: Annotated[Number, Field(ge=-100, le=100)] | None = None
    renormalize_logits: StrictBool | None = None
    remove_invalid_values: StrictBool | None = None
    watermarking_config: (
        Annotated[
            Any, _kind(BaseWatermarkingConfig, dict, wanted="a WatermarkingConfig or its fields")
        ]
        | None
    ) = None
    bad_words_ids: Annotated[list[Ids], BeforeValidator(_ordered), Field(min_length=1)] | None = (
        None
    )
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    sequence_bias: (
        Annotated[
            dict[Annotated[tuple[Natural, ...], Field(min_length=1)], Number],
            BeforeValidator(_biases),
            Field(min_length=1),
        ]
        | None
    ) = None
    forced_bos_token_id: Natural | None = None
    forced_eos_token_id: SomeIds | None = None
    eos_token_id: SomeIds | None = None
    pad_token_id: SomeIds | None = None
    logits_processor: Annotated[Any, _each(callable, "logits processors")] | None = None
    stopping_criteria: Annotated[Any, _each(callable, "stopping criteria")] | None = None
    prefix_allowed_tokens_fn: Annotated[Any, _is(callable, "a function")] | None = None
    streamer: Annotated[Any, _kind(BaseStreamer, wanted="a streamer of transformers")] | None = None
    prompt_lookup_num_tokens: Positive | None = None
    max_matching_ngram_size: Positive | None = None
    assistant_model: Annotated[Any, _kind(PreTrainedModel, wanted="a loaded model")] | None = None
    assistant_tokenizer: (
        Annotated[Any, _kind(PreTrainedTokenizerBase, wanted="a tokenizer")] | None
    ) = None
    tokenizer: Annotated[Any, _kind(PreTrainedTokenizerBase, wanted="a tokenizer")] | None = None
    num_assistant_tokens: Positive | None = None
    num_assistant_tokens_schedule: (
        Literal["constant", "heuristic", "heuristic_transient"] | None
    ) = None
    assistant_confidence_threshold: Share | None = None
    assistant_lookbehind: Positive | None = None
    target_lookbehind: Positive | None = None


HOLD_IDS = (
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Arguments that hold token ids."""

IN_ONE_VOCABULARY = (
    *HOLD_IDS,
    "watermarking_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "assistant_model",
)
"""Arguments that hold token ids, are given some, or depend on their order."""

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Arguments that shape the distribution that tokens are sampled from."""

PROCESSING = (
    *(name for name in HOLD_IDS if name not in ("eos_token_id", "pad_token_id")),
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "renormalize_logits",
    "remove_invalid_values",
    "watermarking_config",
)
"""Arguments that transformers makes logits processors of, sampling and guidance aside."""

FOREIGN_CODE = ("custom_generate", "trust_remote_code")
"""Arguments of `generate` with which it runs code of a repository."""


def transformers_names() -> frozenset[str]:
    """The fields of a `GenerationConfig`, those of this version of transformers."""
    return frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))


def is_default(name: str, value: Any) -> bool:
    """Whether a value of an argument is the same as leaving the argument out."""
    if value is None or value is False:
        return True
    defaults = GenerationConfig._get_default_generation_params()
    return isinstance(value, int | float | str) and name in defaults and value == defaults[name]


def fields_of(config: Any) -> dict[str, Any]:
    """The fields that were set in a `GenerationConfig`, unknown ones included.

    Raises:
        ConfigError: for anything but a `GenerationConfig`.
    """
    if not isinstance(config, GenerationConfig):
        raise ConfigError(
            f"generation_config={short(config)} is not a GenerationConfig of transformers",
            hint="pass the fields by name, or GenerationConfig(...)",
        )
    # These two say where a configuration comes from; the third is used without a prompt only.
    origin = ("transformers_version", "bos_token_id", "decoder_start_token_id")
    return {
        name: value
        for name, value in vars(config).items()
        if value is not None and not name.startswith("_") and name not in origin
    }


def check_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain values, checked one by one; None is left out.

    Raises:
        ConfigError: naming the argument, its value, and what is wrong with it.
    """
    return {name: _checked(name, value) for name, value in arguments.items() if value is not None}


def _checked(name: str, value: Any) -> Any:
    try:
        return getattr(GenerationArguments.model_validate({name: _plain(value)}), name)
    except ValidationError as error:
        cause: Exception = error
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    except Exception as error:  # a value may be any object of the caller
        cause, reason = error, " ".join(str(error).split())
    raise ConfigError(
        f"{name}={short(value)} cannot be used: {reason}",
        hint=f"leave out {name}, or give it a value that transformers documents",
    ) from cause


def check_ids(arguments: Mapping[str, Any], columns: int) -> None:
    """Check that ids are those of a vocabulary with so many columns.

    Raises:
        ConfigError: naming the argument, the id, and the size of the vocabulary.
    """
    for name in HOLD_IDS:
        for found in _flat(arguments.get(name)):
            if found >= columns:
                raise ConfigError(
                    f"{name}={short(arguments[name])}: the vocabulary has no id {found}",
                    hint=f"ids of the default reference are 0 to {columns - 1}",
                )


def _flat(value: Any) -> Iterator[int]:
    """The ids in an argument."""
    if isinstance(value, list | tuple | Mapping):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value


def first_id(pad: Any) -> Any:
    """The first of several padding ids: people pad with `config.eos_token_id`."""
    return pad[0] if isinstance(pad, list | tuple) and pad else pad


def nearest_argument(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name."""
    return nearest(name, known) or "see Pack.generate for the known ones"


def check_names(names: Collection[Any], own: Collection[str]) -> None:
    """Refuse names that are neither arguments of a pack nor known to transformers.

    Args:
        names: The names given.
        own: The other arguments of the call.

    Raises:
        ConfigError: naming the first that is unknown, and the nearest known one.
    """
    known = {*own, *GenerationArguments.model_fields}
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown argument {name!r}", hint=nearest_argument(str(name), known))


def _plain(value: Any) -> Any:
    """A value with tensors and arrays as lists, and their scalars as numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def short(value: Any) -> str:
    """A value for a message, in at most 80 characters; its type if it cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # a caller's object may do anything
        return f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."
