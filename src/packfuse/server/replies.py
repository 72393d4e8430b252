"""Answers in the layout of OpenAI's API, made with the types of its own package."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion

from packfuse.generation.output.result import TokenLogprob, TraceStep
from packfuse.server.fields import Fields
from packfuse.text.chats.tool_text import to_json
from packfuse.tools.logprobs import openai_logprobs
from packfuse.tools.reply import Reply, ToolCall


@dataclass(frozen=True, slots=True)
class Heading:
    """What all parts of a response begin with.

    Attributes:
        model: Name of the pack.
        fingerprint: Short name of how it fuses which members.
        id: Id of the response.
        created: Time of the request, seconds since 1970.
    """

    model: str
    fingerprint: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, kind: str, model: str, fingerprint: str) -> Heading:
        """A heading with an id of its own, which begins with `kind`."""
        return cls(model, fingerprint, f"{kind}-{uuid.uuid4().hex}")

    def fields(self, kind: str) -> dict[str, Any]:
        """The fields, for an object of a kind."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_of(replies: Sequence[Reply], each: int) -> dict[str, Any]:
    """Numbers of tokens over all answers, with the record of the first.

    Args:
        replies: The answers, prompt by prompt.
        each: Number of answers to each prompt, whose tokens count once.
    """
    prompts = [reply.record.usage for reply in replies[::each]]
    read = sum(usage.prompt_tokens for usage in prompts)
    written = sum(reply.record.usage.completion_tokens for reply in replies)
    cached = sum(usage.cached_tokens for usage in prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
        "fusion": record_of(replies[0]),
    }


def record_of(reply: Reply, *, trace: bool = False, prompt_trace: bool = False) -> dict[str, Any]:
    """The record of an answer as plain JSON, with the traces that are wanted."""
    wanted = {"trace": trace, "prompt_trace": prompt_trace}
    left_out = {name for name, kept in wanted.items() if not kept}
    return reply.record.model_dump(mode="json", exclude=left_out)


def finish_reason(reply: Reply) -> str:
    """The finish reason, of those that OpenAI's API has."""
    return "stop" if reply.finish_reason == "cancelled" else reply.finish_reason


def _with_records(
    found: dict[str, Any], replies: Sequence[Reply], fields: Fields, each: int
) -> dict[str, Any]:
    """A response with its records: the first one at the top, the others beside their answers."""
    found["usage"] = usage_of(replies, each)
    kept = {"trace": fields.trace, "prompt_trace": fields.trace}
    found["fusion"] = record_of(replies[0], **kept)
    if len(replies) > 1:
        for choice, reply in zip(found["choices"], replies, strict=True):
            choice["fusion"] = record_of(reply, **kept)
    return found


def chat_response(heading: Heading, replies: Sequence[Reply], fields: Fields) -> dict[str, Any]:
    """The response to a chat."""
    choices = [
        {
            "index": index,
            "message": _message(reply),
            "finish_reason": finish_reason(reply),
            "logprobs": openai_logprobs(reply.record.trace or ()) if fields.logprobs else None,
        }
        for index, reply in enumerate(replies)
    ]
    found = {**heading.fields("chat.completion"), "choices": choices}
    found = _with_records(found, replies, fields, len(replies))
    ChatCompletion.model_validate(found)
    return found


def _message(reply: Reply) -> dict[str, Any]:
    calls = [call_of(call) for call in reply.calls]
    # What could not be parsed as a call is still what the pack wrote.
    text = reply.text + "".join(broken.text for broken in reply.broken)
    message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    message["refusal"] = None
    if calls:
        message["tool_calls"] = calls
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    return message


def call_of(call: ToolCall) -> dict[str, Any]:
    """A tool call."""
    function = {"name": call.name, "arguments": to_json(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def completion_response(
    heading: Heading, replies: Sequence[Reply], fields: Fields, each: int
) -> dict[str, Any]:
    """The response to one or several texts, with `each` answers to each."""
    choices = [
        {
            "index": index,
            "text": reply.text,
            "finish_reason": finish_reason(reply),
            "logprobs": text_logprobs(reply.record.trace or ()) if fields.logprobs else None,
        }
        for index, reply in enumerate(replies)
    ]
    found = {**heading.fields("text_completion"), "choices": choices}
    found = _with_records(found, replies, fields, each)
    TextCompletion.model_validate(found)
    return found


def text_logprobs(steps: Iterable[TraceStep], offset: int = 0) -> dict[str, Any]:
    """Log-probabilities in the layout of completions; offsets are in characters of the answer."""
    found: dict[str, list[Any]] = {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip
    for step in steps:
        found["tokens"].append(_spelled(step.token))
        found["token_logprobs"].append(step.logprob)
        found["top_logprobs"].append({_spelled(o): o.logprob for o in step.alternatives})
        found["text_offset"].append(offset)
        offset += len(step.text)
    return found


def _spelled(token: TokenLogprob) -> str:
    """A token as a name that no other token has: bytes where it is no whole text."""
    try:
        bytes(token.utf8).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.utf8)
    return token.text
