"""One sequence of the pack: the reference's ids, and one stream for each member."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from packfuse.alignment.straddle import StraddleFilter
from packfuse.fusion.gates.base import LastToken
from packfuse.fusion.member_stream import Boundary, MemberStream
from packfuse.fusion.spelled_marks import SpelledMarks
from packfuse.text.prompt import PackPrompt
from packfuse.text.vocabulary import Vocabulary

StreamState = tuple[Boundary, StraddleFilter | None]
"""A member stream's last boundary, and its straddle filter there."""

FixedPrefix = tuple[list[int], bytes, SpelledMarks]
"""A member stream's fixed ids, base text and marks before a control token."""


_CHARACTER = 4
"""Most bytes of a character in UTF-8."""


class Checks(Protocol):
    """Checks that a step has left for later."""

    def settle(self, sequence: PackSequence) -> None:
        """Check what was read of a sequence."""


class PackSequence:
    """A sequence that can be extended, cropped and forked.

    Attributes:
        prompt: The prompt that it begins with.
        ids: All reference ids so far, control tokens included.
        text_ids: The ids since the last control token. They are text, which every member reads in
            its own tokens.
        ends: Byte offset in `text` at which each of `text_ids` ends.
        text: The bytes of `text_ids`.
        unread: Ids after the end of the answer; the members read them only if more ids follow.
        streams: One for each member; None for a member with weight 0.
        window: Number of last text ids that decide the state of the streams' filters.
        weights: `[K]`, one for each member; None for equal weights.
        fused_logps: Fused log-probabilities after the last token, `[reference columns]`.
        member_logps: The carried log-probabilities that they were fused from,
            `[K, reference columns]`.
        is_fused: Whether the gate was open at that position.
        prefilled: Boundaries of the prompt that are read but not fused yet, by member.
        offset: Tokens of the prompt that are in the members' chat templates and not in `ids`.
        filters_ready: Whether every member stream is at the end of `text_ids` and its straddle
            filter is up to date.
        saved_states: The member streams' states at the positions fused last, by length of
            `text_ids`. Cropping to one of these lengths restores its state.
        row: Index of the sequence in its batch.
        answer_from: Byte offset in `text` from which the pack has chosen the tokens; None while
            the prompt is read. Only there may a spelled mark become a member's control token.
        left_out: Members that failed, by name, with the number of tokens that were chosen before.
        checks: What is still to be checked of the last step; see `settle`.
    """

    def __init__(
        self, prompt: PackPrompt, streams: Sequence[MemberStream | None], reference: Vocabulary
    ) -> None:
        """An empty sequence: not even the prompt is read."""
        self.prompt, self.reference = prompt, reference
        self.streams = list(streams)
        self.window = max(stream.pairing.window for stream in streams if stream)
        self.ids: list[int] = []
        self.text_ids: list[int] = []
        self.ends: list[int] = []
        self.text = b""
        self.unread: list[int] = []
        self.weights: Tensor | None = None
        self.fused_logps: Tensor | None = None
        self.member_logps: Tensor | None = None
        self.is_fused = True
        self.filters_ready = False
        self.offset = 0
        self.row = 0
        self.answer_from: int | None = None
        self.prefilled: list[list[Boundary] | None] = []
        self.saved_states: dict[int, list[StreamState | None]] = {}
        self.left_out: dict[str, int] = {}
        self._opened: set[int] = set()
        self.checks: Checks | None = None
        self._closed: list[tuple[int, list[FixedPrefix | None], int | None]] = []
        self._first_text: int | None = None

    def fork(self) -> PackSequence:
        """An independent copy."""
        twin = copy.copy(self)
        twin.ids, twin.text_ids, twin.ends = list(self.ids), list(self.text_ids), list(self.ends)
        twin.unread, twin.prefilled = list(self.unread), list(self.prefilled)
        twin._closed, twin._opened = list(self._closed), set(self._opened)
        twin.saved_states, twin.left_out, twin.checks = {}, dict(self.left_out), None
        twin.streams = [stream and stream.fork() for stream in self.streams]
        return twin

    def outline(self) -> PackSequence:
        """A copy that can be fed and measured, but not read: it shares the members' sessions."""
        twin = copy.copy(self)
        twin.ids, twin.text_ids, twin.ends = list(self.ids), list(self.text_ids), list(self.ends)
        twin._closed = list(self._closed)
        twin.streams = [stream and stream.outline() for stream in self.streams]
        return twin

    def settle(self) -> None:
        """Check what `Engine.advance` has left to its caller.

        Raises:
            MemberError: if a member gave NaN; what was fused is not to be used.
        """
        if self.checks is not None:
            self.checks.settle(self)

    @property
    def is_stale(self) -> bool:
        """Whether a member's model is another now than when it read the sequence."""
        return any(stream is not None and stream.is_stale for stream in self.streams)

    def restart(self) -> None:
        """Let the members whose model has changed read everything again."""
        for stream in self.streams:
            if stream is not None and stream.is_stale:
                stream.restart()
        self.filters_ready, self.saved_states = False, {}
        self.fused_logps = self.member_logps = None

    @property
    def length(self) -> int:
        """Reference tokens so far, prompt included."""
        return self.offset + len(self.ids)

    def feed(self, ids: Sequence[int]) -> None:
        """Append text tokens and control tokens."""
        for index in ids:
            if index in self.reference.control_ids:
                self.close(index)
            else:
                self.append([index])

    def append(self, ids: Sequence[int]) -> None:
        """Append text tokens."""
        for index in ids:
            self.text += self.spelled([index])
            if self._first_text is None:
                self._first_text = len(self.ids)
            self.ids.append(index)
            self.text_ids.append(index)
            self.ends.append(len(self.text))

    def spelled(self, ids: Sequence[int]) -> bytes:
        """The bytes that text tokens add to `text`."""
        text = self.reference.decode(ids)
        if self._first_text is None and self.prompt.fresh:
            # The dummy space of the reference's tokenizer is no part of the text.
            return text.removeprefix(self.prompt.dummy)
        return text

    def close(self, index: int) -> None:
        """Append a control token: the ids before it become fixed for every member."""
        opening = self.prompt.fresh and not self.ids
        before: list[FixedPrefix | None] = []
        for stream in self.streams:
            if stream is None:
                before.append(None)
                continue
            before.append((stream.fixed, stream.base, stream.spelled.copy()))
            stream.close(self.text_ids, self.text, index, opening)
        self._closed.append((len(self.ids), before, self.answer_from))
        self.answer_from = None if self.answer_from is None else 0
        self.ids.append(index)
        self._restart([])

    def note_gate(self, read: int, is_open: bool) -> None:
        """Note whether the gate is open after the first `read` ids, for gates that look back."""
        self.is_fused = is_open
        if is_open:
            self._opened.add(read)
        else:
            self._opened.discard(read)

    def last_token(self, read: int) -> LastToken:
        """The last of the first `read` ids, all of which come after the last control token."""
        count = read - (len(self.ids) - len(self.text_ids))
        if count < 1:
            return LastToken()
        start, end = self.ends[count - 2] if count > 1 else 0, self.ends[count - 1]
        chosen = self.answer_from is not None and start >= self.answer_from
        before = self.text[max(0, end - _CHARACTER) : end]
        return LastToken(chosen and read - 1 in self._opened, self.text[start:end], before)

    def begin_answer(self) -> None:
        """Unless it has begun already, the answer begins at the end of the text."""
        if self.answer_from is None:
            self.answer_from = len(self.text)

    def crop(self, count: int) -> None:
        """Remove the last `count` tokens.

        Raises:
            ValueError: if that reaches into the part of the prompt that is in the chat templates.
        """
        if count == 0:
            return
        target = len(self.ids) + len(self.unread) - count
        if target < 0:
            raise ValueError(f"cannot remove {count} tokens from a sequence of {len(self.ids)}")
        self.unread = self.unread[: max(0, target - len(self.ids))]
        if target >= len(self.ids):
            return
        start = len(self.ids) - len(self.text_ids)
        ids = self.ids[:target]
        self._opened = {read for read in self._opened if read <= target}
        state = self.saved_states.get(target - start)
        while self._closed and self._closed[-1][0] >= target:
            _, before, self.answer_from = self._closed.pop()
            for stream, old in zip(self.streams, before, strict=True):
                if stream is not None and old is not None:
                    stream.fixed, stream.base, spelled = old
                    stream.spelled = spelled.copy()
            start = self._closed[-1][0] + 1 if self._closed else 0
        self.ids = ids[:start]
        if self._first_text is not None and self._first_text >= start:
            self._first_text = None
        self.fused_logps = self.member_logps = None
        self._restart(ids[start:])
        for reading in filter(None, self.streams):
            reading.crop(self.text)
        if state is not None:
            self._restore(state)

    def _restore(self, saved_states: Sequence[StreamState | None]) -> None:
        """Restore saved states of the member streams."""
        for stream, state in zip(self.streams, saved_states, strict=True):
            if stream is not None and state is not None:
                stream.boundary, stream.straddle = state
        self.filters_ready = True

    def _restart(self, text_ids: Sequence[int]) -> None:
        self.text_ids, self.ends, self.text, self.filters_ready = [], [], b"", False
        self.saved_states = {}
        self.append(text_ids)
