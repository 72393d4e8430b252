"""Checks of the arguments of `forward` and `generate`, and methods that a pack does not support."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor
from transformers import GenerationConfig

from packfuse.causal_lm.cache import FusedCache
from packfuse.errors import PromptError, UnsupportedError


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


def single_pad_id(arguments: dict[str, Any], default: GenerationConfig) -> None:
    """Use the first of several padding ids, in place: people pad with `config.eos_token_id`.

    Args:
        arguments: The arguments of `generate`.
        default: The model's own configuration.
    """
    given: Any = arguments.get("generation_config")
    if isinstance(getattr(given, "pad_token_id", None), list | tuple):
        given = arguments["generation_config"] = copy.copy(given)
        given.pad_token_id = _first(given.pad_token_id)
    default.pad_token_id = _first(default.pad_token_id)
    if "pad_token_id" in arguments:
        arguments["pad_token_id"] = _first(arguments["pad_token_id"])


def _first(pad: Any) -> Any:
    return pad[0] if isinstance(pad, list | tuple) and pad else pad


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
    for name in ("assistant_early_exit", "use_mtp"):
        if getattr(settings, name, None):
            raise UnsupportedError(
                f"{name} needs the layers of a single model, and a pack is several models",
                hint=f"leave out {name}",
            )
    assistant = arguments.get("assistant_model")
    if assistant is None or not settings.do_sample:
        return
    if assistant.config.get_text_config().vocab_size != vocab_size:
        raise UnsupportedError(
            "sampling with an assistant of another vocabulary would modify the assistant model",
            hint="use the reference member as assistant, or do_sample=False",
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
