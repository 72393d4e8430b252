"""The identity of a pack: everything that its answers depend on, for caches; and in one line."""

from __future__ import annotations

import json
from typing import Any
from weakref import WeakKeyDictionary

import xxhash
from transformers import PreTrainedModel

from packfuse.fusion.rules import rules
from packfuse.generation.runtime import Runtime
from packfuse.models.fingerprint import ModelState, content_digest
from packfuse.models.hf_member import HFMember
from packfuse.settings import PackConfig
from packfuse.weighting.methods import weightings

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


def described(runtime: Runtime) -> str:
    """A pack in one line: its members with their sizes, and how they are fused."""
    members = [f"{m.name} ({_short(m.model.num_parameters())})" for m in runtime.members]
    rule, weighting = runtime.parts.rule, runtime.parts.weighting
    return (
        f"Pack({', '.join(members)}; reference {runtime.settings.reference}, "
        f"fusion {rules().text(rules().dump(rule))}, "
        f"weighting {weightings().text(weightings().dump(weighting))})"
    )


def _short(parameters: int) -> str:
    """A number of parameters in three digits.

    Example:
        >>> _short(134_515_008)
        '135M'
    """
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)
