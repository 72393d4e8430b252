"""An answer taken apart: reasoning, text, and calls of tools."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packfuse.generation.result import FusionRecord
from packfuse.text.detokenizer import overlap
from packfuse.tools.protocol import CALL, END_CALL

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call of a tool."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class InvalidCall:
    """A call that was begun and is not valid: it is reported, never repaired."""

    id: str
    name: str | None
    arguments: str
    error: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer.

    Attributes:
        text: Without reasoning and calls.
        reasoning: What the model thought first, if it says so between tags.
        calls: Complete calls, in order.
        broken: Calls that were cut off.
        record: The fusion metadata.
    """

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    broken: tuple[InvalidCall, ...]
    record: FusionRecord

    @property
    def finish_reason(self) -> str:
        """The record's, or "tool_calls" where an answer ends with calls."""
        reason = self.record.finish_reason
        return "tool_calls" if reason == "stop" and self.calls else reason

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the answer, and of both, in the reference's vocabulary."""
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
    """A part of an answer as it comes.

    Attributes:
        text: What to add to the text.
        reasoning: What to add to the reasoning.
        call: A call that is complete now.
        broken: A call that will not be complete any more.
        reply: The whole answer, in the last piece only; all of it has been seen before.
    """

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    broken: InvalidCall | None = None
    reply: Reply | None = None


class ReplyParser:
    """Takes an answer apart while it is written.

    Text that may turn out to be a tag is held back. However the text is cut into pieces, the parts
    are the same.
    """

    def __init__(self, *, calling: bool, thinking: bool = False, plain: bool = False) -> None:
        """Begin.

        Args:
            calling: Look for calls.
            thinking: The prompt has opened the reasoning already.
            plain: All of it is text.
        """
        self.calling = calling
        self._held = ""
        self._state = "text" if plain else "reasoning" if thinking else "start"
        self._pieces: list[ReplyDelta] = []

    def feed(self, text: str) -> Iterator[ReplyDelta]:
        """What is certain after `text`."""
        self._held += text
        while (piece := self._next()) is not None:
            yield from self._keep(piece)

    def finish(self, record: FusionRecord) -> Iterator[ReplyDelta]:
        """What was held back, then the whole answer."""
        yield from self._keep(self._rest(record))
        yield ReplyDelta(reply=self._reply(record))

    def whole(self, text: str, record: FusionRecord) -> Reply:
        """All of an answer at once."""
        for _ in self.feed(text):
            pass
        for _ in self._keep(self._rest(record)):
            pass
        return self._reply(record)

    def _reply(self, record: FusionRecord) -> Reply:
        return Reply(
            text="".join(piece.text for piece in self._pieces),
            reasoning="".join(piece.reasoning for piece in self._pieces),
            calls=tuple(piece.call for piece in self._pieces if piece.call),
            broken=tuple(piece.broken for piece in self._pieces if piece.broken),
            record=record,
        )

    def _keep(self, piece: ReplyDelta) -> Iterator[ReplyDelta]:
        if piece != ReplyDelta():
            self._pieces.append(piece)
            yield piece

    def _next(self) -> ReplyDelta | None:
        """The next part; None if more text is needed to know. An empty one changes the state."""
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
        """Blank lines between the reasoning and the text belong to neither."""
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
        # Line breaks before a call belong to it; until then they wait.
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
        """What cannot be the beginning of a tag; the rest stays."""
        certain = len(self._held) - overlap(self._held, tag)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _rest(self, record: FusionRecord) -> ReplyDelta:
        held, self._held = self._held, ""
        if self._state == "reasoning":
            return ReplyDelta(reasoning=held)
        if self._state == "text" and self.calling and held.strip() == CALL.strip():
            # A stop string ended the call within its tag.
            self._state, held = "call", ""
        if self._state == "call":
            reason = {"length": "cut off by max_new_tokens", "cancelled": "cancelled"}
            why = reason.get(record.finish_reason, "ended by a stop string")
            return ReplyDelta(broken=_broken(held, f"the call was {why} and is not complete"))
        return ReplyDelta(text=held)


def _broken(body: str, error: str) -> InvalidCall:
    name = re.match(r'\{"name": "([^"]*)"(?:, "arguments": (.*))?', body, re.DOTALL)
    if name is None:
        return InvalidCall(_new_id(), None, body, error)
    return InvalidCall(_new_id(), name[1], name[2] or "", error)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
