"""What a pack cannot do exactly, and therefore refuses before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from transformers import GenerationConfig

from packfuse.errors import UnsupportedError


def check_decoding(
    settings: GenerationConfig, arguments: Mapping[str, Any], vocab_size: int
) -> None:
    """Refuse decoding methods that would be wrong or harmful with a pack.

    Args:
        settings: The generation settings in force.
        arguments: What `generate` was given besides.
        vocab_size: The pack's.

    Raises:
        UnsupportedError: naming the method and what to do instead.
    """
    if settings.cache_implementation not in (None, "dynamic"):
        raise UnsupportedError(
            f"a pack has no {settings.cache_implementation!r} cache",
            hint="leave cache_implementation out",
        )
    if settings.prefill_chunk_size is not None:
        raise UnsupportedError(
            "a pack cuts its prompts into chunks by itself", hint="leave prefill_chunk_size out"
        )
    for name in ("assistant_early_exit", "use_mtp"):
        if getattr(settings, name, None):
            raise UnsupportedError(
                f"{name} looks inside a model, and a pack is several", hint=f"leave {name} out"
            )
    assistant = arguments.get("assistant_model")
    if assistant is None or not settings.do_sample:
        return
    if assistant.config.get_text_config().vocab_size != vocab_size:
        raise UnsupportedError(
            "sampling with an assistant of another vocabulary would alter the assistant",
            hint="use the reference member as assistant, or do_sample=False",
        )


class Refusals:
    """The methods of a transformers model that a pack does not have."""

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a pack is a list of models, not weights of its own."""
        raise UnsupportedError("a pack has no weights of its own", hint="use Pack.save_config")

    def set_attn_implementation(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: it would change members that others may be using."""
        raise UnsupportedError("a pack's members keep their attention", hint="set it on a member")

    def set_experts_implementation(self, *_: Any, **__: Any) -> NoReturn:
        """Refused likewise."""
        raise UnsupportedError("a pack's members keep their experts", hint="set it on a member")

    def resize_token_embeddings(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: it would change the reference."""
        raise UnsupportedError("a pack's vocabulary is its reference's", hint="resize the member")

    def generate_batch(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: paged caches cannot hold rows that advance unevenly."""
        raise UnsupportedError("a pack cannot do continuous batching", hint="use generate")

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch
