"""Converts replies of a pack to LlamaIndex's responses."""

from __future__ import annotations

import json
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

from packfuse.generation.output.result import TokenLogprob
from packfuse.tools import InvalidCall, Reply, ReplyDelta, ToolCall


def chat_response(reply: Reply, delta: str | None = None) -> ChatResponse:
    """A reply to a chat; `delta` is its last part if it was streamed."""
    return ChatResponse(
        message=_message(reply.text, reply.reasoning, reply.calls, reply.broken),
        delta=delta,
        raw=_raw(reply),
        logprobs=_logprobs(reply),
        additional_kwargs=_counts(reply),
    )


def completion_response(reply: Reply, delta: str | None = None) -> CompletionResponse:
    """A completion; `delta` is its last part if it was streamed."""
    return CompletionResponse(
        text=reply.text,
        delta=delta,
        raw=_raw(reply),
        logprobs=_logprobs(reply),
        additional_kwargs=_counts(reply),
    )


class PartialChat:
    """A streamed reply to a chat; every item has the whole reply so far."""

    def __init__(self) -> None:
        """Start without text."""
        self._text = self._reasoning = ""
        self._calls: tuple[ToolCall, ...] = ()
        self._broken: tuple[InvalidCall, ...] = ()

    def add(self, delta: ReplyDelta) -> ChatResponse:
        """The item for the next delta."""
        self._text += delta.text
        self._reasoning += delta.reasoning
        self._calls += (delta.call,) if delta.call else ()
        self._broken += (delta.broken,) if delta.broken else ()
        if delta.reply is not None:
            response = chat_response(delta.reply, delta.text)
        else:
            message = _message(self._text, self._reasoning, self._calls, self._broken)
            response = ChatResponse(message=message, delta=delta.text)
        if delta.reasoning:
            # LlamaIndex's agents read it here.
            response.additional_kwargs["thinking_delta"] = delta.reasoning
        return response


class PartialCompletion:
    """A streamed completion; every item has the whole text so far."""

    def __init__(self) -> None:
        """Start without text."""
        self._text = ""

    def add(self, delta: ReplyDelta) -> CompletionResponse:
        """The item for the next delta."""
        self._text += delta.text
        if delta.reply is not None:
            return completion_response(delta.reply, delta.text)
        return CompletionResponse(text=self._text, delta=delta.text)


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
        # Streamed structured output reads calls here only.
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


def _counts(reply: Reply) -> dict[str, Any]:
    return {"finish_reason": reply.finish_reason, **reply.usage}


def _logprobs(reply: Reply) -> list[list[LogProb]] | None:
    """By token, its log-probability and then those of the most probable other tokens.

    None if the call requested no trace.
    """
    if reply.record.trace is None:
        return None
    return [
        [_logprob(step.token), *map(_logprob, filter(step.token.__ne__, step.alternatives))]
        for step in reply.record.trace
    ]


def _logprob(token: TokenLogprob) -> LogProb:
    return LogProb(token=token.text, logprob=token.logprob, bytes=list(token.utf8))
