"""Gates: at which positions the members are fused.

One gate a file; `gates()` finds them, and those of installed plugins. A gate is a subclass of
`packfuse.fusion.gates.base.Gate`. This room may use `text`,
`packfuse.models.logps` and the root modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def gates() -> Registry[Any]:
    """The gates."""
    from packfuse.fusion.gates.base import Gate

    return Registry("gate", "packfuse.gates", "packfuse.fusion.gates", Gate)
