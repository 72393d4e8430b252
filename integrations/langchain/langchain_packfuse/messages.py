"""Converts LangChain's messages to turns, and replies to messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    convert_to_openai_messages,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.function_calling import convert_to_openai_tool

from packfuse import Pack
from packfuse.generation.output.result import TraceStep
from packfuse.tools import InvalidCall, Reply, ReplyDelta, Turn
from packfuse.tools.logprobs import openai_logprobs


def turn_of(
    pack: Pack,
    messages: Sequence[BaseMessage],
    *,
    tools: Sequence[Any] | None = None,
    **arguments: Any,
) -> Turn:
    """The turn of a chat that answers messages.

    Raises:
        PromptError: for messages that are not text, or no messages.
        ConfigError: for unusable tools or arguments.
    """
    chat: Any = convert_to_openai_messages(list(messages))
    plain = [convert_to_openai_tool(tool) for tool in tools or ()]
    return Turn(pack, chat, tools=plain, **arguments)


class Metadata(NamedTuple):
    """What the metadata of an answer have.

    Attributes:
        model_name: The name of the pack.
        traced: Whether the call asked for the trace of the fusion record.
        logprobs: Whether it asked for log-probabilities.
    """

    model_name: str
    traced: bool
    logprobs: bool

    def info(self, reply: Reply) -> dict[str, Any]:
        """The reason why an answer ended, and its fusion record."""
        fusion = (
            reply.fusion if self.traced else {**reply.fusion, "trace": None, "prompt_trace": None}
        )
        return {"finish_reason": reply.finish_reason, "fusion": fusion}

    def steps(self, trace: Sequence[TraceStep] | None) -> dict[str, Any]:
        """The log-probabilities of generated tokens, if they are asked for."""
        return {"logprobs": openai_logprobs(trace)} if self.logprobs and trace else {}

    def response(self, reply: Reply) -> dict[str, Any]:
        """The `response_metadata` of an answer, without log-probabilities."""
        found = {"model_name": self.model_name, **self.info(reply)}
        if reply.broken:
            found["invalid_tool_call_errors"] = [broken.error for broken in reply.broken]
        return found


def message_of(reply: Reply, metadata: Metadata) -> AIMessage:
    """A reply as a message."""
    return AIMessage(
        content=reply.text,
        additional_kwargs={"reasoning_content": reply.reasoning} if reply.reasoning else {},
        tool_calls=[tool_call(name=c.name, args=c.arguments, id=c.id) for c in reply.calls],
        invalid_tool_calls=[
            invalid_tool_call(name=b.name, args=_as_json_string(b), id=b.id, error=None)
            for b in reply.broken
        ],
        usage_metadata=_usage(reply),
        response_metadata={**metadata.response(reply), **metadata.steps(reply.record.trace)},
    )


def chunk_of(delta: ReplyDelta, metadata: Metadata, calls: Iterator[int]) -> AIMessageChunk:
    """A delta of a reply as a chunk; `calls` counts the tool calls."""
    chunk = _chunk(delta, metadata, calls)
    chunk.response_metadata |= metadata.steps(delta.trace)
    return chunk


def _chunk(delta: ReplyDelta, metadata: Metadata, calls: Iterator[int]) -> AIMessageChunk:
    if delta.reply is not None:
        return AIMessageChunk(
            content="",
            usage_metadata=_usage(delta.reply),
            response_metadata=metadata.response(delta.reply),
            chunk_position="last",
        )
    if delta.call is not None:
        arguments = json.dumps(delta.call.arguments, ensure_ascii=False)
        chunk = tool_call_chunk(
            name=delta.call.name, args=arguments, id=delta.call.id, index=next(calls)
        )
        return AIMessageChunk(content="", tool_call_chunks=[chunk])
    if delta.broken is not None:
        broken = delta.broken
        chunk = tool_call_chunk(
            name=broken.name, args=_as_json_string(broken), id=broken.id, index=next(calls)
        )
        return AIMessageChunk(content="", tool_call_chunks=[chunk])
    if delta.reasoning:
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": delta.reasoning})
    return AIMessageChunk(content=delta.text)


def _as_json_string(broken: InvalidCall) -> str:
    """The arguments as a JSON string, which LangChain cannot repair into a valid call."""
    return json.dumps(broken.arguments, ensure_ascii=False)


def _usage(reply: Reply) -> UsageMetadata:
    usage = reply.usage
    return UsageMetadata(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
        input_token_details=InputTokenDetails(cache_read=reply.record.usage.cached_tokens),
    )
