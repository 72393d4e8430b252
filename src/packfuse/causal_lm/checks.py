"""Checks of the arguments of `forward` and `generate`, and methods that a pack does not support."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

from packfuse.causal_lm.arguments import (
    FOREIGN_CODE,
    PROCESSING,
    SAMPLING,
    GenerationArguments,
    check_ids,
    check_values,
    fields_of,
    first_id,
    is_default,
    nearest_argument,
    short,
)
from packfuse.causal_lm.cache import FusedCache
from packfuse.causal_lm.processors import FiniteScores, LevelFree
from packfuse.errors import ConfigError, PackError, PromptError, UnsupportedError
from packfuse.hf_compat.generation import (
    built_processors,
    check_generation,
    generation_settings,
    unused_arguments,
)

VALUES = frozenset(GenerationArguments.model_fields) - {"cache_implementation"}
"""Arguments whose values are checked by their types; a cache has a check of its own."""
NO_LAYERS = ("output_attentions", "output_hidden_states")
NOT_READ = (*NO_LAYERS, "inputs_embeds", "position_ids", "labels")
"""Arguments of a transformers model that a pack cannot honor."""
GENERATE_NAMES = frozenset(inspect.signature(GenerationMixin.generate).parameters) - {
    "self",
    "kwargs",
}


def checked_cache(cache: Any) -> FusedCache:
    """The given cache of a pack, or a new one for None.

    Raises:
        UnsupportedError: for any other kind of cache.
    """
    if cache is None:
        return FusedCache()
    if not isinstance(cache, FusedCache):
        raise UnsupportedError(
            f"a pack cannot use a {type(cache).__name__}",
            hint="pass no cache, or one that the pack returned",
        )
    return cache


def unpadded(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The sequences of a batch without the padding on the left.

    Args:
        ids: Token ids `[B, n]`.
        mask: Attention mask `[B, m]` with m >= n, of which the last n columns are used; None for no
            padding.

    Raises:
        PromptError: for no tokens, or a mask that has zeros anywhere but on the left.
    """
    if ids.numel() == 0:
        raise PromptError("the prompt has no tokens", hint="give at least one token")
    rows: list[list[int]] = ids.tolist()
    if mask is None:
        return rows
    mask = mask[:, mask.shape[1] - ids.shape[1] :]
    lengths = [int(length) for length in mask.sum(-1).tolist()]
    for index, length in enumerate(lengths):
        if length == 0 or not bool(mask[index, len(mask[index]) - length :].all()):
            raise PromptError(
                f"row {index} of the attention mask has zeros on the right, inside or everywhere",
                hint="pad on the left",
            )
    return [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]


def check_arguments(arguments: dict[str, Any], tokenizer: Any, columns: int) -> None:
    """Check the arguments of `generate` one by one, and take out those that say nothing.

    Args:
        arguments: The arguments of `generate` by name.
        tokenizer: The reference's.
        columns: Size of the pack's vocabulary.

    Raises:
        ConfigError: naming the argument and its value.
        UnsupportedError: for what a pack does not do.
    """
    refuse_foreign_code(arguments)
    arguments.pop("trust_remote_code", None)
    if not arguments.get("custom_generate"):
        arguments.pop("custom_generate", None)
    config = arguments.get("generation_config")
    fields = {} if config is None else fields_of(config)
    given = {name: value for name, value in arguments.items() if name in VALUES}
    known = {name: value for name, value in fields.items() if name in VALUES}
    for checked in (check_values(known), check_values(given)):
        check_ids(checked, columns)
    own = arguments.get("tokenizer")
    if own is not None and own is not tokenizer and own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"tokenizer={short(own)} is not that of the reference, whose tokens are generated",
            hint="pass pack.tokenizer",
        )
    for name in NOT_READ:
        if arguments.get(name) is not None and arguments[name] is not False:
            raise UnsupportedError(
                f"a pack cannot honor {name}: it reads token ids and has no layers of its own",
                hint=f"leave out {name}",
            )


def refuse_foreign_code(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments with which `generate` would load code from a folder or a repository.

    Raises:
        UnsupportedError: naming the argument.
    """
    for name in FOREIGN_CODE:
        value = arguments.get(name)
        own = name == "custom_generate" and callable(value)
        if value is not None and value is not False and not own:
            raise UnsupportedError(
                f"{name}={short(value)}: a call cannot run code that comes with a model",
                hint="pass a function of your own as custom_generate to pack.model.generate",
            )


def check_settings(
    model: PreTrainedModel, settings: GenerationConfig, arguments: Mapping[str, Any]
) -> None:
    """Check that the arguments of `generate` fit each other, and that it knows all of them.

    Args:
        model: The pack.
        settings: The generation settings in force.
        arguments: The other arguments of `generate`.

    Raises:
        ConfigError: with the reason that transformers gives.
        UnsupportedError: naming the method and what to do instead.
    """
    check_decoding(settings, arguments, model.config.vocab_size)
    unused = unused_arguments(model, settings, arguments)
    with typed_errors(", ".join(arguments), lambda: nearest_unknown(unused)):
        repository = check_generation(model, settings, arguments)
        validate: Any = model
        validate._validate_model_kwargs(unused)
    if repository is not None:
        raise UnsupportedError(
            f"this decoding method is code of the repository {repository}, which a call cannot run",
            hint="leave out penalty_alpha, dola_layers, num_beam_groups and force_words_ids",
        )


def nearest_unknown(names: Iterable[str]) -> str:
    """The hint for arguments of `generate` that nothing uses."""
    known = {*GENERATE_NAMES, *VALUES}
    return "; ".join(f"{name}: {nearest_argument(name, known)}" for name in names)


@contextmanager
def typed_errors(what: str, hint: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors that others raise for arguments into a `ConfigError`."""
    try:
        yield
    except PackError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{what} cannot be used: {reason}", hint=hint()) from error


def settings_in_force(model: Any, arguments: Mapping[str, Any], ids: Tensor) -> GenerationConfig:
    """The generation settings in force, as `generate` derives them from its arguments.

    Raises:
        ConfigError: for values that contradict each other.
    """
    given = {key: value for key, value in arguments.items() if key != "generation_config"}
    with typed_errors(", ".join(arguments) or "the generation settings"):
        return generation_settings(model, arguments.get("generation_config"), given, ids)


def check_call(model: Any, arguments: Mapping[str, Any]) -> None:
    """Check arguments of `generate` without a prompt; nothing is read.

    Args:
        model: The pack, a `FusedForCausalLM`.
        arguments: The arguments by name.

    Raises:
        UnsupportedError: for decoding methods that a pack cannot run exactly.
        ConfigError: for arguments that cannot be used.
    """
    own, reference = dict(arguments), model.engine.reference
    check_arguments(own, reference.tokenizer, reference.columns)
    check_settings(model, settings_in_force(model, own, torch.zeros(1, 1).long()), own)
    check_processing(model, own)


def single_pad_id(arguments: dict[str, Any], default: GenerationConfig) -> None:
    """Use the first of several padding ids, in place.

    Args:
        arguments: The arguments of `generate`.
        default: The model's own configuration.
    """
    given: Any = arguments.get("generation_config")
    if isinstance(getattr(given, "pad_token_id", None), list | tuple):
        given = arguments["generation_config"] = copy.copy(given)
        given.pad_token_id = first_id(given.pad_token_id)
    default.pad_token_id = first_id(default.pad_token_id)
    if "pad_token_id" in arguments:
        arguments["pad_token_id"] = first_id(arguments["pad_token_id"])


def check_decoding(
    settings: GenerationConfig, arguments: Mapping[str, Any], vocab_size: int
) -> None:
    """Refuse decoding methods that a pack cannot run exactly, or that would modify a member.

    Args:
        settings: The generation settings in force.
        arguments: The other arguments of `generate`.
        vocab_size: Size of the pack's vocabulary.

    Raises:
        UnsupportedError: naming the method and what to do instead.
    """
    if settings.cache_implementation not in (None, "dynamic"):
        raise UnsupportedError(
            f"a pack has no {settings.cache_implementation!r} cache",
            hint="leave out cache_implementation",
        )
    if settings.prefill_chunk_size is not None:
        raise UnsupportedError(
            "a pack splits prompts into chunks itself", hint="leave out prefill_chunk_size"
        )
    for name in ("assistant_early_exit", "use_mtp", *NO_LAYERS):
        if getattr(settings, name, None):
            raise UnsupportedError(
                f"{name} needs the layers of a single model, and a pack is several models",
                hint=f"leave out {name}",
            )
    if settings.token_healing:
        raise UnsupportedError(
            "token_healing changes the prompt after the members have read it",
            hint="leave out token_healing; an answer may begin inside a word",
        )
    assistant = arguments.get("assistant_model")
    drafts = assistant is not None or settings.prompt_lookup_num_tokens
    if settings.guidance_scale not in (None, 1) and (drafts or (settings.num_beams or 1) > 1):
        raise UnsupportedError(
            "guidance_scale follows one sequence a row, token by token",
            hint="leave out num_beams and drafts",
        )
    if assistant is None or not settings.do_sample:
        return
    if assistant.config.get_text_config().vocab_size != vocab_size:
        raise UnsupportedError(
            "sampling with an assistant of another vocabulary would modify the assistant model",
            hint="use the reference member as assistant, or do_sample=False",
        )


def check_processing(model: Any, arguments: Mapping[str, Any]) -> None:
    """Build the logits processors of a call and try them on scores of their own.

    Args:
        model: The pack.
        arguments: Checked arguments by name; others than those of processors have no effect here.

    Raises:
        ConfigError: naming the argument, if its processor fails or leaves no token.
    """
    ids = torch.arange(4)[None]
    shaping = {n: v for n, v in arguments.items() if n in PROCESSING and not is_default(n, v)}
    sampling = {n: v for n, v in arguments.items() if n in SAMPLING and not is_default(n, v)}
    width = model.config.vocab_size
    for group, size in ((shaping, width), (sampling, min(width, 64))):
        scores = torch.linspace(30.0, -30.0, size)[None]
        tried = [{name: value} for name, value in group.items()]
        for one in [*tried, group] if len(tried) > 1 else tried:
            what = ", ".join(f"{name}={short(value)}" for name, value in one.items())
            with typed_errors(what):
                settings = generation_settings(
                    model, None, {**one, "do_sample": group is sampling}, ids
                )
                processors = FiniteScores(built_processors(model, settings, ids))
            try:
                with typed_errors(what):
                    processors(ids, scores)
            except ConfigError as error:
                reason = error.message.removeprefix("the logits processors of this call ")
                raise ConfigError(f"{what}: {reason}", hint="leave a token possible") from error


def wants_logits(settings: GenerationConfig, arguments: Mapping[str, Any]) -> bool:
    """Whether a processor may depend on the level of the scores, and not on their differences only.

    Penalties multiply logits, and would hardly change log-probabilities near 0. What a caller's
    own processors do is not known.
    """
    penalties = (settings.repetition_penalty, settings.encoder_repetition_penalty)
    return (
        any(penalty not in (None, 1.0) for penalty in penalties)
        or settings.exponential_decay_length_penalty is not None
        or any(not isinstance(one, LevelFree) for one in arguments.get("logits_processor") or ())
    )


def forbids_tokens(arguments: Mapping[str, Any]) -> bool:
    """Whether tokens outside a rule's support are needed: for guidance, and where some are banned.

    Args:
        arguments: Arguments of `generate` and generation settings by name.
    """
    names = ("logits_processor", "prefix_allowed_tokens_fn")
    return any(arguments.get(name) for name in names) or any(
        not is_default(name, arguments.get(name))
        for name in (*PROCESSING, "guidance_scale", "min_length", "min_new_tokens")
    )


class UnsupportedMethods:
    """The methods of a transformers model that a pack does not support; each raises an error."""

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: a pack is a list of models and has no weights of its own."""
        raise UnsupportedError("a pack has no weights of its own", hint="use Pack.save_config")

    def set_attn_implementation(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: it would modify members that other packs may use."""
        raise UnsupportedError(
            "a pack does not change the attention of its members", hint="call this on a member"
        )

    def set_experts_implementation(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: it would modify members that other packs may use."""
        raise UnsupportedError(
            "a pack does not change the experts of its members", hint="call this on a member"
        )

    def load_custom_generate(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: it would run code of a repository, which loading a pack decides about."""
        raise UnsupportedError(
            "a call cannot run code that comes with a model",
            hint="pass a function of your own as custom_generate",
        )

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: it would modify the reference."""
        raise UnsupportedError(
            "the vocabulary of a pack is that of its reference", hint="resize the member"
        )

    def generate_batch(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: paged caches need sequences that advance by equal lengths."""
        raise UnsupportedError("a pack has no continuous batching", hint="use generate")

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch
