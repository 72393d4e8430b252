"""Weightings: how much each member counts on a prompt.

One weighting a file; `weightings()` finds them, and those of installed plugins. A weighting is a
subclass of `packfuse.weighting.methods.base.Weighting`. This room may use `fusion.rules` and the
root modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def weightings() -> Registry[Any]:
    """The weightings."""
    from packfuse.weighting.methods.base import Weighting

    return Registry("weighting", "packfuse.weightings", "packfuse.weighting.methods", Weighting)
