"""From one vocabulary to another: pairs of tokens, and distributions carried through them.

One alignment a file; `alignments()` finds them, and those of installed plugins. An alignment is a
subclass of `packfuse.alignment.base.Alignment`, and makes a `Pairing` for each member. This room
may use `text` and the root modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def alignments() -> Registry[Any]:
    """The alignments."""
    from packfuse.alignment.base import Alignment

    return Registry("alignment", "packfuse.alignments", "packfuse.alignment", Alignment)
