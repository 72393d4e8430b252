"""Answers in the layout of OpenAI's API, made with the types of its own package."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from packfuse.generation.result import TokenLogprob, TraceStep
from packfuse.server.fields import Fields
from packfuse.text.chats.tool_text import to_json
from packfuse.tools.logprobs import openai_logprobs
from packfuse.tools.reply import Reply, ReplyDelta, ToolCall


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


def record_of(reply: Reply, *, trace: bool = False) -> dict[str, Any]:
    """The record of an answer as plain JSON."""
    return reply.record.model_dump(mode="json", exclude=set() if trace else {"trace"})


def finish_reason(reply: Reply) -> str:
    """The finish reason, of those that OpenAI's API has."""
    return "stop" if reply.finish_reason == "cancelled" else reply.finish_reason


def _with_records(
    found: dict[str, Any], replies: Sequence[Reply], fields: Fields, each: int
) -> dict[str, Any]:
    """A response with its records: the first one at the top, the others beside their answers."""
    found["usage"] = usage_of(replies, each)
    found["fusion"] = record_of(replies[0], trace=fields.trace)
    if len(replies) > 1:
        for choice, reply in zip(found["choices"], replies, strict=True):
            choice["fusion"] = record_of(reply, trace=fields.trace)
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
    calls = [_call(call) for call in reply.calls]
    # What could not be parsed as a call is still what the pack wrote.
    text = reply.text + "".join(broken.text for broken in reply.broken)
    message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text}
    message["refusal"] = None
    if calls:
        message["tool_calls"] = calls
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    return message


def _call(call: ToolCall) -> dict[str, Any]:
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


class _Stream:
    """What streams of chats and of texts have in common.

    Attributes:
        kind: What its chunks are called.
    """

    kind: ClassVar[str]

    def __init__(self, heading: Heading, fields: Fields) -> None:
        """Before the first delta."""
        self._heading, self._fields = heading, fields

    def usage(self, reply: Reply) -> dict[str, Any]:
        """The chunk with the numbers of tokens."""
        found = {**self._heading.fields(self.kind), "choices": []}
        found["usage"] = usage_of([reply], 1)
        found["fusion"] = record_of(reply)
        return found

    def _with(self, choice: dict[str, Any], trace: Sequence[TraceStep]) -> dict[str, Any]:
        """The chunk of a part of the answer, with its steps if they are wanted."""
        found = {**self._heading.fields(self.kind), "choices": [{"index": 0, **choice}]}
        if self._fields.trace and trace:
            found["trace"] = [step.model_dump(mode="json") for step in trace]
        return found


class ChatStream(_Stream):
    """Makes the chunks of a streamed chat."""

    kind = "chat.completion.chunk"

    def __init__(self, heading: Heading, fields: Fields) -> None:
        """Before the first delta."""
        super().__init__(heading, fields)
        self._calls = 0

    def first(self) -> dict[str, Any]:
        """The chunk with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunks(self, delta: ReplyDelta) -> Iterable[dict[str, Any]]:
        """The chunks of a delta."""
        if delta.text or (delta.trace and delta.reply is None):
            yield self._chunk({"content": delta.text}, delta.trace)
        if delta.reasoning:
            yield self._chunk({"reasoning_content": delta.reasoning})
        if delta.broken is not None:
            yield self._chunk({"content": delta.broken.text})
        if delta.call is not None:
            call = {"index": self._calls, **_call(delta.call)}
            self._calls += 1
            yield self._chunk({"tool_calls": [call]})
        if delta.reply is not None:
            last = self._chunk({}, delta.trace, finish_reason(delta.reply))
            yield {**last, "fusion": record_of(delta.reply)}

    def _chunk(
        self, delta: dict[str, Any], trace: Sequence[TraceStep] = (), reason: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"delta": delta, "finish_reason": reason}
        if self._fields.logprobs:
            choice["logprobs"] = openai_logprobs(trace) if trace else None
        found = self._with(choice, trace)
        ChatCompletionChunk.model_validate(found)
        return found


class TextStream(_Stream):
    """Makes the chunks of a streamed completion."""

    kind = "text_completion"

    def __init__(self, heading: Heading, fields: Fields) -> None:
        """Before the first delta."""
        super().__init__(heading, fields)
        self._offset = 0

    def first(self) -> None:
        """A completion has no first chunk."""

    def chunks(self, delta: ReplyDelta) -> Iterable[dict[str, Any]]:
        """The chunks of a delta."""
        reply, trace = delta.reply, delta.trace
        if not (delta.text or trace or reply):
            return
        logprobs = None
        if self._fields.logprobs and trace:
            logprobs = text_logprobs(trace, self._offset)
            self._offset += sum(len(step.text) for step in trace)
        reason = finish_reason(reply) if reply else None
        choice = {"text": delta.text, "finish_reason": reason, "logprobs": logprobs}
        found = self._with(choice, trace)
        if reply is not None:
            found["fusion"] = record_of(reply)
        yield found
