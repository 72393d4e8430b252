"""Converts LlamaIndex's messages and tools to plain data in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    BaseContentBlock,
    BaseRecursiveContentBlock,
    CachePoint,
    ChatMessage,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.tools import BaseTool

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as new dictionaries in the format of OpenAI's chat API.

    Example:
        >>> plain_messages([ChatMessage("Hello!")])
        [{'role': 'user', 'content': 'Hello!'}]
    """
    return [_message(message) for message in messages]


def plain_tools(tools: Iterable[BaseTool | dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools with name, description and schema; tools that are plain data are not changed."""
    return [
        tool if isinstance(tool, dict) else tool.metadata.to_openai_tool(skip_length_check=True)
        for tool in tools
    ]


def _message(message: ChatMessage) -> dict[str, Any]:
    extra = message.additional_kwargs
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    plain: dict[str, Any] = {
        "role": _ROLES.get(message.role, message.role.value),
        "content": _content(message.blocks),
    }
    # Messages stored by older versions of LlamaIndex have their calls in OpenAI's format.
    if calls or extra.get("tool_calls"):
        plain["tool_calls"] = calls or list(extra["tool_calls"])
    plain |= {name: extra[name] for name in ("tool_call_id", "name") if extra.get(name)}
    return plain


def _content(blocks: Sequence[BaseContentBlock]) -> str | list[dict[str, Any]] | None:
    parts = [part for block in blocks for part in _parts(block)]
    if not parts:
        return None
    if all(part["type"] == "text" for part in parts):
        # As in ChatMessage.content.
        return "\n".join(part["text"] for part in parts)
    return parts


def _parts(block: BaseContentBlock) -> list[dict[str, Any]]:
    """Content blocks in OpenAI's format; a block that is not text has its type only (an error)."""
    if isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
        return []
    if isinstance(block, TextBlock):
        return [{"type": "text", "text": block.text}]
    if isinstance(block, BaseRecursiveContentBlock):
        return [part for nested in block.nested_blocks for part in _parts(nested)]
    return [{"type": str(getattr(block, "block_type", type(block).__name__))}]


def _call(block: ToolCallBlock) -> dict[str, Any]:
    function = {"name": block.tool_name, "arguments": block.tool_kwargs}
    return {"id": block.tool_call_id, "type": "function", "function": function}
