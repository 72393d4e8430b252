"""Tool calling and chat turns, shared by all front ends.

Import from here: `Turn`, `Completion`, `complete`, `Tool`, `ToolChoice`, and the parts of an answer
(`Reply`, `ReplyDelta`, `ToolCall`, `InvalidCall`). This room may use `pack` and the rooms below it.
The command line, the evaluation and the integrations build on this room.
"""

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
