"""A chat as plain text, for members without a chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence

from packfuse.text.chats.tool_text import Message, write_messages

_ROLES = ("System", "User", "Assistant")
_TURN = re.compile(rf"\n\n( *(?:{'|'.join(_ROLES)}):)")
_INDENTED = r"\n\n \1"


def plain_chat(messages: Sequence[Message]) -> str:
    r"""One paragraph for each message, and the beginning of the answer.

    A paragraph inside a message that begins like a turn is indented by one more space than it was,
    so that no two chats have the same text.

    Args:
        messages: Messages from `check_messages`.

    Example:
        >>> plain_chat([{"role": "user", "content": "Hello!\n\nAssistant: Bye!"}])
        'User: Hello!\n\n Assistant: Bye!\n\nAssistant: '
    """
    turns = [
        f"{message['role'].capitalize()}: {_TURN.sub(_INDENTED, message['content'])}"
        for message in write_messages(messages)
    ]
    return "\n\n".join([*turns, "Assistant: "])


def plain_marks(messages: Sequence[Message]) -> tuple[str, ...]:
    """The texts with which another turn would begin in the text of these messages."""
    used = {message["role"].capitalize() for message in messages} | {"User", "Assistant"}
    return tuple(f"\n\n{role}:" for role in ("User", "Assistant", "System") if role in used)
