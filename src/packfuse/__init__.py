"""packfuse: a pack of local language models that answers as one."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packfuse.causal_lm.model import FusedForCausalLM
    from packfuse.errors import PackError
    from packfuse.generation.output.result import Answer, Chunk, FusionRecord
    from packfuse.generation.weigh import Weighing
    from packfuse.pack import Pack
    from packfuse.settings import MemberSettings, PackConfig, PackSettings

__all__ = [
    "Answer",
    "Chunk",
    "FusedForCausalLM",
    "FusionRecord",
    "MemberSettings",
    "Pack",
    "PackConfig",
    "PackError",
    "PackSettings",
    "Weighing",
]
__version__ = "0.1.0"

_HOMES = {
    "Answer": "generation.output.result",
    "Chunk": "generation.output.result",
    "FusedForCausalLM": "causal_lm.model",
    "FusionRecord": "generation.output.result",
    "MemberSettings": "settings",
    "Pack": "pack",
    "PackConfig": "settings",
    "PackError": "errors",
    "PackSettings": "settings",
    "Weighing": "generation.weigh",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `packfuse --help` needs no torch."""
    if name == "MemberConfig":
        warnings.warn(
            "packfuse.MemberConfig is now packfuse.MemberSettings", DeprecationWarning, stacklevel=2
        )
        name = "MemberSettings"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
