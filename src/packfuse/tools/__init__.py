"""Tool calling and chat turns, shared by all front ends.

Import from here: `Turn`, `Completion`, `complete`, `Tool`, `ToolChoice`, and the parts of an answer
(`Reply`, `ReplyDelta`, `ToolCall`, `InvalidCall`). This room may use `pack` and the rooms below it.
The command line, the evaluation and the integrations build on this room.
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
