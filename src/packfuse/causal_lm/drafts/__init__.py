"""Speculative decoding: how tokens are drafted, which the pack then verifies in one pass.

One draft method per file; `drafts()` finds these, and those of installed plugins. A draft method is
a subclass of `packfuse.causal_lm.drafts.base.Draft`. This room may use `fusion` and the rooms below
it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def drafts() -> Registry[Any]:
    """The draft methods."""
    from packfuse.causal_lm.drafts.base import Draft

    return Registry("draft method", "packfuse.drafts", "packfuse.causal_lm.drafts", Draft)
