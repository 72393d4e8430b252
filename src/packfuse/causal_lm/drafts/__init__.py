"""Speculative decoding: how tokens are drafted that the pack then verifies in one pass.

One way to draft a file; `drafts()` finds them, and those of installed plugins. A way to draft is a
subclass of `packfuse.causal_lm.drafts.base.Draft`. This room may use `fusion` and the rooms below.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def drafts() -> Registry[Any]:
    """The ways to draft tokens."""
    from packfuse.causal_lm.drafts.base import Draft

    return Registry("draft method", "packfuse.drafts", "packfuse.causal_lm.drafts", Draft)
