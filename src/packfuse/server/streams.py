"""Streamed answers in the layout of OpenAI's API, made with the types of its own package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from openai.types.chat import ChatCompletionChunk

from packfuse.generation.output.result import TraceStep
from packfuse.server.fields import Fields
from packfuse.server.replies import (
    Heading,
    call_of,
    finish_reason,
    record_of,
    text_logprobs,
    usage_of,
)
from packfuse.tools.logprobs import openai_logprobs
from packfuse.tools.reply import Reply, ReplyDelta


class _AnswerStream:
    """Makes the chunks of one streamed answer.

    Attributes:
        kind: What its chunks are called.
    """

    kind: ClassVar[str]

    def __init__(self, heading: Heading, fields: Fields, index: int = 0) -> None:
        """Before the first delta of answer number `index`."""
        self._heading, self._fields, self._index = heading, fields, index

    def _with(self, choice: dict[str, Any], trace: Sequence[TraceStep]) -> dict[str, Any]:
        """The chunk of a part of the answer, with its steps if they are wanted."""
        found = {**self._heading.fields(self.kind), "choices": [{"index": self._index, **choice}]}
        if self._fields.trace and trace:
            found["trace"] = [step.model_dump(mode="json") for step in trace]
        return found


class ChatStream(_AnswerStream):
    """Makes the chunks of a streamed chat."""

    kind = "chat.completion.chunk"

    def __init__(self, heading: Heading, fields: Fields, index: int = 0) -> None:
        """Before the first delta of answer number `index`."""
        super().__init__(heading, fields, index)
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
            call = {"index": self._calls, **call_of(delta.call)}
            self._calls += 1
            yield self._chunk({"tool_calls": [call]})
        if delta.reply is not None:
            last = self._chunk({}, delta.trace, finish_reason(delta.reply))
            yield {**last, "fusion": record_of(delta.reply, prompt_trace=self._fields.trace)}

    def _chunk(
        self, delta: dict[str, Any], trace: Sequence[TraceStep] = (), reason: str | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"delta": delta, "finish_reason": reason}
        if self._fields.logprobs:
            choice["logprobs"] = openai_logprobs(trace) if trace else None
        found = self._with(choice, trace)
        ChatCompletionChunk.model_validate(found)
        return found


class TextStream(_AnswerStream):
    """Makes the chunks of a streamed completion."""

    kind = "text_completion"

    def __init__(self, heading: Heading, fields: Fields, index: int = 0) -> None:
        """Before the first delta of answer number `index`."""
        super().__init__(heading, fields, index)
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
            found["fusion"] = record_of(reply, prompt_trace=self._fields.trace)
        yield found


class ReplyStream:
    """Makes the chunks of a stream, which may have several answers."""

    def __init__(
        self, kind: type[ChatStream | TextStream], heading: Heading, fields: Fields, count: int
    ) -> None:
        """Before the first delta.

        Args:
            kind: Makes the chunks of an answer.
            heading: What all chunks begin with.
            fields: The request.
            count: Number of answers, of all prompts together.
        """
        self._kind, self._heading, self._fields = kind, heading, fields
        self._answers = [kind(heading, fields, index) for index in range(count)]
        self._replies: dict[int, Reply] = {}

    @property
    def done(self) -> bool:
        """Whether all answers are complete."""
        return len(self._replies) == len(self._answers)

    @property
    def replies(self) -> list[Reply]:
        """The complete answers, in order."""
        return [self._replies[index] for index in sorted(self._replies)]

    def first(self) -> Iterator[dict[str, Any]]:
        """The chunks before all deltas."""
        return (opening for one in self._answers if (opening := one.first()))

    def chunks(self, index: int, delta: ReplyDelta) -> Iterable[dict[str, Any]]:
        """The chunks of a delta of answer number `index`."""
        if delta.reply is not None:
            self._replies[index] = delta.reply
        return self._answers[index].chunks(delta)

    def last(self, each: int) -> Iterator[dict[str, Any]]:
        """The chunk with the numbers of tokens, if it is wanted; see `usage_of`."""
        if self._fields.include_usage:
            found = {**self._heading.fields(self._kind.kind), "choices": []}
            found["usage"] = usage_of(self.replies, each)
            found["fusion"] = record_of(self.replies[0])
            yield found
