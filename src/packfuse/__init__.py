"""packfuse: a pack of local language models that answers as one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packfuse.answer import Answer, Chunk
    from packfuse.config import MemberConfig, PackConfig
    from packfuse.errors import PackError
    from packfuse.model import FusedForCausalLM
    from packfuse.pack import Pack
    from packfuse.record import FusionRecord
    from packfuse.weighing import Weighing

__all__ = [
    "Answer",
    "Chunk",
    "FusedForCausalLM",
    "FusionRecord",
    "MemberConfig",
    "Pack",
    "PackConfig",
    "PackError",
    "Weighing",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "answer",
    "Chunk": "answer",
    "FusedForCausalLM": "model",
    "FusionRecord": "record",
    "MemberConfig": "config",
    "Pack": "pack",
    "PackConfig": "config",
    "PackError": "errors",
    "Weighing": "weighing",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `packfuse --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
