"""Tool calling and chat turns, as every front end shares them.

Import from here: `Turn`, `Completion`, `complete`, `Tool`, `ToolChoice`, and what a reply is parsed
into (`Reply`, `ReplyDelta`, `ToolCall`, `InvalidCall`). This room may use the pack and the rooms
below it; the command line, the evaluation and the integrations build on it.
"""

import warnings
from typing import Any

from packfuse.tools.reply import InvalidCall, Reply, ReplyDelta, ToolCall
from packfuse.tools.tool import Tool, ToolChoice
from packfuse.tools.turn import Completion, Turn, complete

__all__ = [
    "Completion",
    "InvalidCall",
    "Reply",
    "ReplyDelta",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "Turn",
    "complete",
]

_FORMER = {
    "Broken": InvalidCall,
    "Call": ToolCall,
    "Choice": ToolChoice,
    "Piece": ReplyDelta,
}


def __getattr__(name: str) -> Any:
    """A class by its former name.

    Warns:
        DeprecationWarning: naming the new one.
    """
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _FORMER[name]
    message = f"packfuse.tools.{name} is now packfuse.tools.{new.__name__}"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return new
