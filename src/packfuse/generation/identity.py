"""The identity of a pack: everything that its answers depend on, for caches of answers."""

from __future__ import annotations

import uuid
from typing import Any

from packfuse.generation.runtime import Runtime
from packfuse.settings import PackConfig


def identity_of(runtime: Runtime, config: PackConfig | None) -> dict[str, Any]:
    """Everything that answers depend on besides the arguments of a call, as plain JSON types.

    A model that was passed as an object without a name gets a random id.

    Args:
        runtime: The pack.
        config: The configuration that the members were loaded from; None for loaded objects.
    """
    sources = [str(member.model.name_or_path) for member in runtime.members]
    loaded = config.members if config else [None] * len(sources)
    settings = runtime.named_settings.changes_answers
    own = {f"pack_{name}": settings.pop(name) for name in ("fusion", "weighting")}
    return {
        "members": [
            {
                "name": member.name,
                "source": source or uuid.uuid4().hex,
                "dtype": str(member.model.dtype),
                **(entry.model_dump(mode="json", exclude_none=True) if entry else {}),
            }
            for member, source, entry in zip(runtime.members, sources, loaded, strict=True)
        ],
        **own,
        **settings,
    }
