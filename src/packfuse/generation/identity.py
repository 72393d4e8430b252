"""The identity of a pack: everything that its answers depend on, for caches of answers."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

import xxhash
from transformers import PreTrainedModel

from packfuse.generation.runtime import Runtime
from packfuse.models.fingerprint import ModelState, content_digest
from packfuse.models.hf_member import HFMember
from packfuse.settings import PackConfig

_digests: WeakKeyDictionary[PreTrainedModel, tuple[ModelState, str]] = WeakKeyDictionary()
"""By model, its state when its content was read last, and the digest of its content."""


def identity_of(runtime: Runtime, config: PackConfig | None) -> dict[str, Any]:
    """Everything that answers depend on besides the arguments of a call, as plain JSON types.

    Models and tokenizers enter by content, whether they were loaded by name or handed over as
    objects. So equal packs in two processes have equal identities, and a model that is edited, that
    has another adapter, or that is quantized has another identity.

    Args:
        runtime: The pack.
        config: The configuration that the members were loaded from; None for loaded objects.
    """
    loaded = config.members if config else [None] * len(runtime.members)
    settings = runtime.named_settings.changes_answers
    own = {f"pack_{name}": settings.pop(name) for name in ("fusion", "weighting")}
    return {
        "members": [
            {
                "name": member.name,
                "source": str(member.model.name_or_path),
                "dtype": str(member.model.dtype),
                **(entry.model_dump(mode="json", exclude_none=True) if entry else {}),
                "weights": _weights(member),
                "tokenizer": _digest(member.vocabulary.fingerprint, member.tokenizer.chat_template),
                "generation": _digest(runtime.generation_settings(k)),
            }
            for k, (member, entry) in enumerate(zip(runtime.members, loaded, strict=True))
        ],
        **own,
        **settings,
    }


def _weights(member: HFMember) -> str:
    """Digest of a member's model; its content is read only if its state has changed."""
    model, now = member.model, ModelState.of(member.model, member.tokenizer)
    before, digest = _digests.get(model, (None, ""))
    if before != now:
        digest = content_digest(model)
        _digests[model] = now, digest
    return digest


def forget_digest(member: HFMember) -> None:
    """Read the content of a member's model again when the identity is asked for next."""
    _digests.pop(member.model, None)


def _digest(*parts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())
