"""The identity of a pack: everything that its answers depend on, for caches; and in one line."""

from __future__ import annotations

import json
from typing import Any

import xxhash

from packfuse.fusion.rules import rules
from packfuse.generation.runtime import Runtime
from packfuse.models.member import MemberFacts
from packfuse.settings import PackConfig
from packfuse.view.tables import html_table
from packfuse.weighting.methods import weightings


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
                "source": member.facts.source,
                "dtype": member.facts.dtype,
                **(entry.model_dump(mode="json", exclude_none=True) if entry else {}),
                "weights": member.digest(),
                "tokenizer": _digest(member.vocabulary.fingerprint, member.tokenizer.chat_template),
                "generation": _digest(runtime.generation_settings(k)),
            }
            for k, (member, entry) in enumerate(zip(runtime.members, loaded, strict=True))
        ],
        **own,
        **settings,
    }


def _digest(*parts: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


def described(runtime: Runtime) -> str:
    """A pack in one line: its members with their sizes, and how they are fused."""
    members = [f"{m.name} ({_size(m.facts)})" for m in runtime.members]
    return f"Pack({', '.join(members)}; {', '.join(_method(runtime))})"


def described_html(runtime: Runtime) -> str:
    """The members of a pack as a table, and how they are fused."""
    rows = [
        [
            member.name,
            _size(member.facts),
            member.facts.dtype or "–",
            f"{len(member.tokenizer):,} tokens",
            "reference" if member.name == runtime.settings.reference else "",
        ]
        for member in runtime.members
    ]
    heads = ["member", "parameters", "type", "vocabulary", ""]
    return html_table("Pack", heads, rows, [", ".join(_method(runtime))])


def _method(runtime: Runtime) -> list[str]:
    """The reference, the rule and the weighting."""
    rule, weighting = runtime.parts.rule, runtime.parts.weighting
    return [
        f"reference {runtime.settings.reference}",
        f"fusion {rules().text(rules().dump(rule))}",
        f"weighting {weightings().text(weightings().dump(weighting))}",
    ]


def _size(facts: MemberFacts) -> str:
    """The number of parameters, or where the model is."""
    return facts.source if facts.parameters is None else _short(facts.parameters)


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
