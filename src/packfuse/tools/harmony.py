"""The reply format of gpt-oss (harmony): messages in channels, told apart by control tokens.

A message is `<|start|>assistant<|channel|>analysis<|message|>text<|end|>`; the first one begins
after `<|start|>assistant`, with which the prompt ends. The recipient of a call stands before or
after the channel, `to=functions.name`, with `<|constrain|>json` after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from packfuse.text.detokenizer import overlap
from packfuse.text.reply_tags import HARMONY

_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_OPENING = ("<|start|>", "<|channel|>")
_CLOSING = ("<|end|>", "<|return|>", "<|call|>", *_OPENING)
_MESSAGE = "<|message|>"
_LONGEST_HEADER = 300
"""Number of characters without `<|message|>` after which a header is taken for text."""

Channel = Literal["free", "text", "reasoning", "call"]


class Segment(NamedTuple):
    """A part of a reply.

    Attributes:
        channel: "free" outside of messages; "text", "reasoning" or "call" inside.
        text: The next part of the text.
        name: The function of a call.
        ended: Whether the message is complete.
    """

    channel: Channel
    text: str
    name: str = ""
    ended: bool = False


class HarmonySplitter:
    """Splits a reply into segments while it is generated; other text is one free segment.

    A mark that stands where the format has none is dropped: a control token is never text.
    """

    def __init__(self) -> None:
        """Start before the reply."""
        self._held = ""
        self._message: Segment | None = None
        self._header = False

    @property
    def open_call(self) -> str | None:
        """The function of a call that is not complete; None if there is none."""
        message = self._message
        return message.name if message and message.channel == "call" else None

    def feed(self, text: str) -> Iterator[Segment]:
        """Add text, and yield the segments that are certain now."""
        self._held += text
        while (segment := self._next()) is not None:
            if segment.text or segment.ended:
                yield segment

    def finish(self) -> Iterator[Segment]:
        """Yield the text that was held back; a header without its message is dropped."""
        held, self._held = self._held, ""
        if held and not self._header:
            yield (self._message or Segment("free", ""))._replace(text=held)

    def _next(self) -> Segment | None:
        if self._header:
            return self._read_header()
        message = self._message or Segment("free", "")
        at, mark = min(
            ((self._held.find(mark), mark) for mark in HARMONY if mark in self._held),
            default=(-1, ""),
        )
        if at < 0:
            keep = max(overlap(self._held, mark) for mark in HARMONY)
            certain = len(self._held) - keep
            text, self._held = self._held[:certain], self._held[certain:]
            return message._replace(text=text) if text else None
        text, self._held = self._held[:at], self._held[at:]
        self._header = mark in _OPENING
        if not self._header:
            self._held = self._held.removeprefix(mark)
        if mark not in _CLOSING:
            return message._replace(text=text)
        self._message = None
        return message._replace(text=text, ended=message.channel != "free")

    def _read_header(self) -> Segment | None:
        header, found, rest = self._held.partition(_MESSAGE)
        begun = 0 if found else overlap(header, _MESSAGE)
        if len(header) - begun > _LONGEST_HEADER:
            # No header: only its first mark is dropped, so that the result does not depend on how
            # the text is split.
            mark = next(mark for mark in _OPENING if self._held.startswith(mark))
            self._held, self._header = self._held.removeprefix(mark), False
            return Segment("free", "")
        if not found:
            return None
        self._held, self._header = rest, False
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        if recipient:
            self._message = Segment("call", "", recipient[1])
        elif channel and channel[1] == "analysis":
            self._message = Segment("reasoning", "")
        else:
            # The channel "final", and what the channel "commentary" says to the user.
            self._message = Segment("text", "")
        return Segment("free", "")
