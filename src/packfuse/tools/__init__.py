"""What front ends share: tools and calls, replies taken apart, one call of a chat or a text."""

from packfuse.tools.reply import Broken, Call, Piece, Reply
from packfuse.tools.tool import Choice, Tool
from packfuse.tools.turn import Completion, Turn, complete

__all__ = ["Broken", "Call", "Choice", "Completion", "Piece", "Reply", "Tool", "Turn", "complete"]
