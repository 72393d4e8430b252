"""Parses an answer into reasoning, text, and tool calls."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from packfuse.generation.output.result import FusionRecord, TraceStep
from packfuse.text.chats.tool_text import CALL, END_CALL
from packfuse.text.detokenizer import overlap
from packfuse.text.reply_tags import THINK, Reasoning
from packfuse.tools.harmony import HarmonySplitter, Segment

Problem = Callable[[str, dict[str, Any]], str | None]
"""From the name and the arguments of a call to what is wrong with them; None if nothing is."""

_OPENAI = {"time": "length", "criteria": "stop"}
"""Finish reasons that OpenAI's API does not have."""
_CUT_OFF = {
    "length": "cut off by max_new_tokens",
    "time": "cut off by max_time",
    "criteria": "ended by a stopping criterion",
    "cancelled": "cancelled",
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call of a tool.

    Attributes:
        id: A unique id of the call.
        name: Name of the tool.
        arguments: Arguments of the call.
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InvalidCall:
    """A call that is incomplete or not valid. It is not repaired.

    Attributes:
        id: A unique id of the call.
        name: Name of the tool; None if it is not complete.
        arguments: The text of the arguments, as far as it was generated.
        error: Why the call is not valid.
        text: The whole text of the call as it was generated, its tags included.
    """

    id: str
    name: str | None
    arguments: str
    error: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        text: The text, without reasoning and calls.
        reasoning: The text between the marks of reasoning at the beginning of the answer, or in
            the channel for it.
        calls: Complete calls, in order.
        broken: Calls that are incomplete or not valid, in order.
        record: The record of the fusion.
    """

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    broken: tuple[InvalidCall, ...]
    record: FusionRecord

    @property
    def finish_reason(self) -> str:
        """The finish reason under OpenAI's names, which front ends expect.

        "tool_calls" for an answer that ended with calls, "length" for one that was out of time, and
        "stop" for one that a stopping criterion ended; the record distinguishes these.
        """
        reason = _OPENAI.get(self.record.finish_reason, self.record.finish_reason)
        return "tool_calls" if reason == "stop" and self.calls else reason

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens in the reference's vocabulary, by OpenAI's names."""
        usage = self.record.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }

    @property
    def fusion(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return self.record.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class ReplyDelta:
    """A part of a streamed answer.

    Attributes:
        text: The next part of the text.
        reasoning: The next part of the reasoning.
        call: A call that is now complete.
        broken: A call that is incomplete or not valid.
        reply: The whole answer, in the last delta only, which has nothing else.
        trace: The steps since the last delta, if the call requested a trace.
    """

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    broken: InvalidCall | None = None
    reply: Reply | None = None
    trace: tuple[TraceStep, ...] = ()


class ReplyParser:
    """Parses an answer while it is generated.

    Text that may be the beginning of a tag is held back until more text follows. The result does
    not depend on how the text is split.
    """

    def __init__(
        self,
        *,
        calling: bool,
        forced: bool = False,
        thinking: bool | Reasoning = False,
        plain: bool = False,
        marks: Sequence[Reasoning] = (THINK,),
        harmony: bool = False,
        problem: Problem | None = None,
    ) -> None:
        """Start before the answer.

        Args:
            calling: Whether the answer may have calls.
            forced: Whether it consists of calls, so that whatever is no call is part of one.
            thinking: Whether the prompt ends with a mark of reasoning, so that the answer begins
                inside it; or the mark.
            plain: Whether tags are plain text.
            marks: The marks between which reasoning stands.
            harmony: Whether the answer may be in the format of gpt-oss.
            problem: Says what is wrong with a call, beyond its form.
        """
        self.calling, self.forced = calling, forced
        self._marks = tuple(marks)
        self._closing = thinking.closing if isinstance(thinking, Reasoning) else THINK.closing
        self._problem = problem
        self._splitter = HarmonySplitter() if harmony and not plain else None
        self._spoken = ""
        self._held = ""
        self._state = "text" if plain else "reasoning" if thinking else "start"
        self._deltas: list[ReplyDelta] = []

    def feed(self, text: str) -> Iterator[ReplyDelta]:
        """Add text, and yield the parts that are certain now."""
        if self._splitter is None:
            yield from self._feed(text)
            return
        for segment in self._splitter.feed(text):
            yield from self._segment(segment)

    def _feed(self, text: str) -> Iterator[ReplyDelta]:
        self._held += text
        while (delta := self._next()) is not None:
            yield from self._keep(delta)

    def _segment(self, segment: Segment) -> Iterator[ReplyDelta]:
        """The parts of a segment of harmony."""
        if segment.channel == "free":
            yield from self._feed(segment.text)
        elif segment.channel == "text":
            self._state = "call" if self._state == "call" else "text"
            yield from self._feed(segment.text)
        elif segment.channel == "reasoning":
            yield from self._keep(ReplyDelta(reasoning=segment.text))
        else:
            self._spoken += segment.text
            if segment.ended:
                body, self._spoken = self._spoken, ""
                yield from self._keep(self._called(segment.name, body))

    def finish(self, record: FusionRecord) -> Iterator[ReplyDelta]:
        """Yield the text that was held back, then the whole answer."""
        yield from self._end(record)
        yield ReplyDelta(reply=self._reply(record))

    def parse(self, text: str, record: FusionRecord) -> Reply:
        """Parse a whole answer."""
        for _ in self.feed(text):
            pass
        for _ in self._end(record):
            pass
        return self._reply(record)

    def _end(self, record: FusionRecord) -> Iterator[ReplyDelta]:
        if self._splitter is not None:
            for segment in self._splitter.finish():
                yield from self._segment(segment)
            name, body = self._splitter.open_call, self._spoken
            if name is not None and record.finish_reason == "stop" and record.stop is None:
                # `<|call|>` ended the answer, and has no text.
                yield from self._keep(self._called(name, body))
            elif name is not None:
                error = f"the call was {_reason(record)} and is not complete"
                broken = InvalidCall(_new_id(), name, body, error, body)
                yield from self._keep(ReplyDelta(broken=broken))
        yield from self._keep(self._rest(record))

    def _reply(self, record: FusionRecord) -> Reply:
        return Reply(
            text="".join(delta.text for delta in self._deltas),
            reasoning="".join(delta.reasoning for delta in self._deltas),
            calls=tuple(delta.call for delta in self._deltas if delta.call),
            broken=tuple(delta.broken for delta in self._deltas if delta.broken),
            record=record,
        )

    def _keep(self, delta: ReplyDelta) -> Iterator[ReplyDelta]:
        if delta != ReplyDelta():
            self._deltas.append(delta)
            yield delta

    def _next(self) -> ReplyDelta | None:
        """The next part; None if more text is needed. An empty part only changes the state."""
        return {
            "start": self._start,
            "reasoning": self._reasoning,
            "gap": self._gap,
            "text": self._text,
            "call": self._call,
        }[self._state]()

    def _start(self) -> ReplyDelta | None:
        bare = self._held.lstrip()
        for mark in self._marks:
            if bare.startswith(mark.opening):
                self._held, self._state = bare.removeprefix(mark.opening), "reasoning"
                self._closing = mark.closing
                return ReplyDelta()
        if any(mark.opening.startswith(bare) for mark in self._marks):
            return None
        self._state = "text"
        return ReplyDelta()

    def _reasoning(self) -> ReplyDelta | None:
        before, found, after = self._held.partition(self._closing)
        if found:
            self._held, self._state = after, "gap"
            return ReplyDelta(reasoning=before)
        thought = self._all_but(self._closing)
        return ReplyDelta(reasoning=thought) if thought else None

    def _gap(self) -> ReplyDelta | None:
        """Skip white space between the reasoning and the text."""
        self._held = self._held.lstrip()
        if not self._held:
            return None
        self._state = "text"
        return ReplyDelta()

    def _text(self) -> ReplyDelta | None:
        if not self.calling:
            text, self._held = self._held, ""
            return ReplyDelta(text=text) if text else None
        before, found, after = self._held.partition(CALL)
        # Line breaks before a call are part of the call, so they are held back.
        if found:
            self._held, self._state = after, "call"
            return ReplyDelta(text=before.rstrip("\n"))
        text = self._all_but(CALL)
        kept = text.rstrip("\n")
        self._held = text[len(kept) :] + self._held
        return ReplyDelta(text=kept) if kept else None

    def _call(self) -> ReplyDelta | None:
        body, found, after = self._held.partition(END_CALL)
        if not found:
            return None
        self._held, self._state = after, "text"
        spec, error = _parsed(body)
        if error is None and not (isinstance(spec, dict) and isinstance(spec.get("name"), str)):
            error = "not a call: no object with a name"
        if error is None and not isinstance(spec.get("arguments"), dict):
            error = "not a call: the arguments are no object"
        if error is None and self._problem:
            error = self._problem(spec["name"], spec["arguments"])
        if error is not None:
            return ReplyDelta(broken=_broken(body, error, END_CALL))
        return ReplyDelta(call=ToolCall(_new_id(), spec["name"], spec["arguments"]))

    def _called(self, name: str, body: str) -> ReplyDelta:
        """A call whose name stands outside of its body, in harmony."""
        arguments, error = _parsed(body or "{}")
        if error is None and not isinstance(arguments, dict):
            error = "not a call: the arguments are no object"
        if error is None and not self.calling:
            error = "not a call: no tool may be called"
        if error is None and self._problem:
            error = self._problem(name, arguments)
        if error is not None:
            return ReplyDelta(broken=InvalidCall(_new_id(), name, body, error, body))
        return ReplyDelta(call=ToolCall(_new_id(), name, arguments))

    def _all_but(self, tag: str) -> str:
        """Take the text that cannot be part of a tag; the rest stays."""
        certain = len(self._held) - overlap(self._held, tag)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _rest(self, record: FusionRecord) -> ReplyDelta:
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return ReplyDelta(reasoning=held)
        if self._state in ("start", "text") and self._is_begun_call(held, record):
            error = f"the call was {_reason(record)} and is not complete"
            return ReplyDelta(broken=InvalidCall(_new_id(), None, "", error, held.lstrip("\n")))
        if self._state == "call":
            error = f"the call was {_reason(record)} and is not complete"
            return ReplyDelta(broken=_broken(held, error))
        return ReplyDelta(text=held)

    def _is_begun_call(self, held: str, record: FusionRecord) -> bool:
        """Whether the text at the end of an answer is the beginning of an opening tag."""
        begun = held.strip()
        if not self.calling or not CALL.startswith(begun):
            return False
        if begun == CALL.strip():
            return True
        if record.finish_reason == "stop" and record.stop is None:
            return False
        if self.forced:
            # Nothing may be text here; after a complete call, line breaks may be left over.
            return bool(begun) or not any(delta.call or delta.broken for delta in self._deltas)
        return len(begun) > 1


def _parsed(text: str) -> tuple[Any, str | None]:
    """The value of JSON text, and what is wrong with it or None.

    Values that cannot be passed on are wrong, too: NaN and infinities, lone surrogates, and nesting
    that is too deep.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError as error:
        return None, f"not a call: {error}"
    except RecursionError:
        return None, "not a call: the JSON is nested too deeply"
    return value, None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _reason(record: FusionRecord) -> str:
    """How an answer ended before its end, in words."""
    if record.finish_reason == "length" and any("no more room" in note for note in record.notes):
        return "cut off by the end of a member's context window"
    return _CUT_OFF.get(record.finish_reason, "ended by a stop string")


def _broken(body: str, error: str, end: str = "") -> InvalidCall:
    """An invalid call with the name and the arguments that its text has."""
    text = f"{CALL}{body}{end}"
    name = re.match(r'\{"name": "([^"]*)"(?:, "arguments": (.*))?', body, re.DOTALL)
    if name is None:
        return InvalidCall(_new_id(), None, body, error, text)
    return InvalidCall(_new_id(), name[1], name[2] or "", error, text)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
