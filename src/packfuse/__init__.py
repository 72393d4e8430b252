"""packfuse: a pack of local language models that answers as one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packfuse.errors import PackError
    from packfuse.generation.answer import Answer, Chunk
    from packfuse.generation.fused_model import FusedForCausalLM
    from packfuse.generation.record import FusionRecord
    from packfuse.generation.weigh import Weighing
    from packfuse.pack import Pack
    from packfuse.settings import MemberSettings, PackConfig

__all__ = [
    "Answer",
    "Chunk",
    "FusedForCausalLM",
    "FusionRecord",
    "MemberSettings",
    "Pack",
    "PackConfig",
    "PackError",
    "Weighing",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "generation.answer",
    "Chunk": "generation.answer",
    "FusedForCausalLM": "generation.fused_model",
    "FusionRecord": "generation.record",
    "MemberSettings": "settings",
    "Pack": "pack",
    "PackConfig": "settings",
    "PackError": "errors",
    "Weighing": "generation.weigh",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `packfuse --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
