"""Tool calling and chat turns, as every front end shares them.

Import from here: `Turn`, `Completion`, `complete`, `Tool`, `ToolChoice`, and what a reply is parsed
into (`Reply`, `ReplyDelta`, `ToolCall`, `InvalidCall`). This room may use the pack and the rooms
below it; the command line, the evaluation and the integrations build on it.
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
