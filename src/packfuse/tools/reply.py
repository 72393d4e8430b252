"""Parses an answer into reasoning, text, and tool calls."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packfuse.generation.result import FusionRecord
from packfuse.text.detokenizer import overlap
from packfuse.text.tool_text import CALL, END_CALL

THINK, END_THINK = "<think>", "</think>"

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
    """

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        text: The text, without reasoning and calls.
        reasoning: The text between `<think>` tags at the beginning of the answer.
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
    """

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    broken: InvalidCall | None = None
    reply: Reply | None = None


class ReplyParser:
    """Parses an answer while it is generated.

    Text that may be the beginning of a tag is held back until more text follows. The result does
    not depend on how the text is split.
    """

    def __init__(self, *, calling: bool, thinking: bool = False, plain: bool = False) -> None:
        """Start before the answer.

        Args:
            calling: Whether the answer may have calls.
            thinking: Whether the prompt ends with `<think>`, so that the answer begins inside it.
            plain: Whether tags are plain text.
        """
        self.calling = calling
        self._held = ""
        self._state = "text" if plain else "reasoning" if thinking else "start"
        self._deltas: list[ReplyDelta] = []

    def feed(self, text: str) -> Iterator[ReplyDelta]:
        """Add text, and yield the parts that are certain now."""
        self._held += text
        while (delta := self._next()) is not None:
            yield from self._keep(delta)

    def finish(self, record: FusionRecord) -> Iterator[ReplyDelta]:
        """Yield the text that was held back, then the whole answer."""
        yield from self._keep(self._rest(record))
        yield ReplyDelta(reply=self._reply(record))

    def parse(self, text: str, record: FusionRecord) -> Reply:
        """Parse a whole answer."""
        for _ in self.feed(text):
            pass
        for _ in self._keep(self._rest(record)):
            pass
        return self._reply(record)

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
        if bare.startswith(THINK):
            self._held, self._state = bare.removeprefix(THINK), "reasoning"
            return ReplyDelta()
        if THINK.startswith(bare):
            return None
        self._state = "text"
        return ReplyDelta()

    def _reasoning(self) -> ReplyDelta | None:
        before, found, after = self._held.partition(END_THINK)
        if found:
            self._held, self._state = after, "gap"
            return ReplyDelta(reasoning=before)
        thought = self._all_but(END_THINK)
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
        try:
            spec = json.loads(body)
            return ReplyDelta(call=ToolCall(_new_id(), spec["name"], dict(spec["arguments"])))
        except (ValueError, TypeError, KeyError) as error:
            return ReplyDelta(broken=_broken(body, f"not a call: {error}"))

    def _all_but(self, tag: str) -> str:
        """Take the text that cannot be part of a tag; the rest stays."""
        certain = len(self._held) - overlap(self._held, tag)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _rest(self, record: FusionRecord) -> ReplyDelta:
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return ReplyDelta(reasoning=held)
        if self._state == "text" and self.calling and held.strip() == CALL.strip():
            # A stop string ended the answer inside the opening tag of a call.
            self._state, held = "call", ""
        if self._state == "call":
            reason = _CUT_OFF.get(record.finish_reason, "ended by a stop string")
            return ReplyDelta(broken=_broken(held, f"the call was {reason} and is not complete"))
        return ReplyDelta(text=held)


def _broken(body: str, error: str) -> InvalidCall:
    """An invalid call with the name and the arguments that its text has."""
    name = re.match(r'\{"name": "([^"]*)"(?:, "arguments": (.*))?', body, re.DOTALL)
    if name is None:
        return InvalidCall(_new_id(), None, body, error)
    return InvalidCall(_new_id(), name[1], name[2] or "", error)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
