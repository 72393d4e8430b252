"""One sequence of the pack: the reference's ids, and every member's reader."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from packfuse.alignment.straddle import StraddleFilter
from packfuse.fusion.member_stream import Boundary, MemberStream
from packfuse.text.prompt import PackPrompt
from packfuse.text.vocabulary import Vocabulary

StreamState = tuple[Boundary, StraddleFilter | None]
"""What a reader says at a place, and its filter there."""

FixedPrefix = tuple[list[int], bytes]
"""What a reader had before a control token: its fixed ids and its base text."""


class PackSequence:
    """A sequence that grows, shrinks and forks.

    Attributes:
        prompt: What it began with.
        ids: Every reference id given so far, control tokens included.
        stream: Those since the last control token: text that members read in their own tokens.
        ends: Where each of those ends in `text`.
        text: What the stream spells, bytes.
        unread: Ids that came after the end of the answer; read only if more follows.
        readers: One by member; None for a member that has no say in this row.
        weights: `[K]`, how much each member is trusted.
        last: Fused log-probabilities after the last token, `[reference columns]`.
        heard: The members' log-probabilities behind `last`, `[K, reference columns]`.
        joined: Whether the members were fused there.
        prefilled: Places of the prompt, read but not fused yet.
        offset: Tokens of the prompt that are in the members' templates, not in `ids`.
        filters_ready: Whether every member stream is at the end of `stream` and its boundary filter
            is up to date.
        saved_states: The member streams' states at the positions fused last, by length of `stream`:
            cropping to one of these lengths restores its state.
        place: Which row of the batch it is, for those who watch.
    """

    def __init__(
        self, prompt: PackPrompt, readers: Sequence[MemberStream | None], reference: Vocabulary
    ) -> None:
        """Start before the prompt; nothing has been read."""
        self.prompt, self.reference = prompt, reference
        self.readers = list(readers)
        self.ids: list[int] = []
        self.stream: list[int] = []
        self.ends: list[int] = []
        self.text = b""
        self.unread: list[int] = []
        self.weights: Tensor | None = None
        self.last: Tensor | None = None
        self.heard: Tensor | None = None
        self.joined = True
        self.filters_ready = False
        self.offset = 0
        self.place = 0
        self.prefilled: list[list[Boundary] | None] = []
        self.saved_states: dict[int, list[StreamState | None]] = {}
        self._closed: list[tuple[int, list[FixedPrefix | None]]] = []
        self._first_text: int | None = None

    def fork(self) -> PackSequence:
        """An independent copy."""
        twin = object.__new__(PackSequence)
        twin.__dict__.update(self.__dict__)
        for name in ("ids", "stream", "ends", "unread", "prefilled", "_closed"):
            setattr(twin, name, list(getattr(self, name)))
        twin.saved_states = {}
        twin.readers = [reader and reader.fork() for reader in self.readers]
        return twin

    @property
    def length(self) -> int:
        """Reference tokens so far, prompt included."""
        return self.offset + len(self.ids)

    def feed(self, ids: Sequence[int]) -> None:
        """Take tokens of both kinds."""
        for index in ids:
            if index in self.reference.control_ids:
                self.close(index)
            else:
                self.append([index])

    def append(self, ids: Sequence[int]) -> None:
        """Take text tokens."""
        for index in ids:
            self.text += self._spelled(index)
            self.ids.append(index)
            self.stream.append(index)
            self.ends.append(len(self.text))

    def _spelled(self, index: int) -> bytes:
        token = self.reference.token_bytes[index] or b""
        if self._first_text is None:
            self._first_text = len(self.ids)
            if self.prompt.fresh:
                # The dummy space is the reference's own business.
                return token.removeprefix(self.reference.text_prefix)
        return token

    def close(self, index: int) -> None:
        """Take a control token: what came before it becomes fixed for every member."""
        opening = self.prompt.fresh and not self.ids
        before: list[FixedPrefix | None] = []
        for reader in self.readers:
            if reader is None:
                before.append(None)
                continue
            before.append((reader.fixed, reader.base))
            reader.close(self.stream, self.text, index, opening)
        self._closed.append((len(self.ids), before))
        self.ids.append(index)
        self._restart([])

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens.

        Raises:
            ValueError: if that reaches into the part of the prompt that came in templates.
        """
        if count == 0:
            return
        target = len(self.ids) + len(self.unread) - count
        if target < 0:
            raise ValueError(f"a row of {len(self.ids)} tokens cannot lose {count}")
        self.unread = self.unread[: max(0, target - len(self.ids))]
        if target >= len(self.ids):
            return
        start = len(self.ids) - len(self.stream)
        ids = self.ids[:target]
        mark = self.saved_states.get(target - start)
        while self._closed and self._closed[-1][0] >= target:
            _, before = self._closed.pop()
            for reader, old in zip(self.readers, before, strict=True):
                if reader is not None and old is not None:
                    reader.fixed, reader.base = old
            start = self._closed[-1][0] + 1 if self._closed else 0
        self.ids = ids[:start]
        if self._first_text is not None and self._first_text >= start:
            self._first_text = None
        self.last = self.heard = None
        self._restart(ids[start:])
        if mark is not None:
            self._return(mark)

    def _return(self, saved_states: Sequence[StreamState | None]) -> None:
        """Stand again where the readers stood."""
        for reader, mark in zip(self.readers, saved_states, strict=True):
            if reader is not None and mark is not None:
                reader.place, reader.straddle = mark
        self.filters_ready = True

    def _restart(self, stream: Sequence[int]) -> None:
        self.stream, self.ends, self.text, self.filters_ready = [], [], b"", False
        self.saved_states = {}
        self.append(stream)
