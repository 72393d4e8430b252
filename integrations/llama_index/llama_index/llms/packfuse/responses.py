"""What a pack answers, as LlamaIndex's responses."""

from __future__ import annotations

import json
import math
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from packfuse.tools import InvalidCall, Reply, ReplyDelta, ToolCall


def chat_response(reply: Reply, delta: str | None = None) -> ChatResponse:
    """A whole answer to a chat; `delta` is the rest of it where it was streamed."""
    return ChatResponse(
        message=_message(reply.text, reply.reasoning, reply.calls, reply.broken),
        delta=delta,
        raw=_raw(reply),
        logprobs=_logprobs(reply),
        additional_kwargs=_figures(reply),
    )


def completion_response(reply: Reply, delta: str | None = None) -> CompletionResponse:
    """A whole completion; `delta` is the rest of it where it was streamed."""
    return CompletionResponse(
        text=reply.text,
        delta=delta,
        raw=_raw(reply),
        logprobs=_logprobs(reply),
        additional_kwargs=_figures(reply),
    )


class ChatDraft:
    """An answer to a chat while it is streamed: every item holds all that there is so far."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._text = self._reasoning = ""
        self._calls: tuple[ToolCall, ...] = ()
        self._broken: tuple[InvalidCall, ...] = ()

    def add(self, piece: ReplyDelta) -> ChatResponse:
        """The item for the next piece."""
        self._text += piece.text
        self._reasoning += piece.reasoning
        self._calls += (piece.call,) if piece.call else ()
        self._broken += (piece.broken,) if piece.broken else ()
        if piece.reply is not None:
            response = chat_response(piece.reply, piece.text)
        else:
            message = _message(self._text, self._reasoning, self._calls, self._broken)
            response = ChatResponse(message=message, delta=piece.text)
        if piece.reasoning:
            # Where LlamaIndex's agents look for it.
            response.additional_kwargs["thinking_delta"] = piece.reasoning
        return response


class CompletionDraft:
    """A completion while it is streamed: every item holds the whole text so far."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._text = ""

    def add(self, piece: ReplyDelta) -> CompletionResponse:
        """The item for the next piece."""
        self._text += piece.text
        if piece.reply is not None:
            return completion_response(piece.reply, piece.text)
        return CompletionResponse(text=self._text, delta=piece.text)


def _message(
    text: str, reasoning: str, calls: tuple[ToolCall, ...], broken: tuple[InvalidCall, ...]
) -> ChatMessage:
    blocks: list[ContentBlock] = []
    if reasoning:
        blocks.append(ThinkingBlock(content=reasoning))
    if text or not calls:
        blocks.append(TextBlock(text=text))
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in calls
    ]
    extra: dict[str, Any] = {}
    if calls:
        # Streamed structured output looks for calls here and nowhere else.
        extra["tool_calls"] = [_plain_call(call) for call in calls]
    if broken:
        extra["invalid_tool_calls"] = [
            {"id": b.id, "name": b.name, "arguments": b.arguments, "error": b.error} for b in broken
        ]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _plain_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _raw(reply: Reply) -> dict[str, Any]:
    return {"usage": dict(reply.usage), "fusion": reply.fusion}


def _figures(reply: Reply) -> dict[str, Any]:
    return {"finish_reason": reply.finish_reason, **reply.usage}


def _logprobs(reply: Reply) -> list[list[LogProb]] | None:
    """The pack's own probabilities, where the call asked for a trace."""
    if reply.record.trace is None:
        return None
    return [
        [
            LogProb(
                token=step.text,
                logprob=math.log(step.probability) if step.probability > 0 else -math.inf,
                bytes=list(step.text.encode()),
            )
        ]
        for step in reply.record.trace
    ]
