"""Fusion rules: K next-token distributions in, one out.

One rule a file; `rules()` finds them, and those of installed plugins. A rule is a subclass of
`packfuse.fusion.rules.base.Rule`. This room may use `alignment` and the root modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def rules() -> Registry[Any]:
    """The fusion rules."""
    from packfuse.fusion.rules.base import Rule

    return Registry("fusion rule", "packfuse.rules", "packfuse.fusion.rules", Rule)
