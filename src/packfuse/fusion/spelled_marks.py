"""Marks that the reference spells and a member has as control tokens: which of them it reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from packfuse.alignment.controls import MarkTable
from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.vocabulary import Vocabulary

_KEPT = 32
"""Number of places that are remembered at which a mark may have begun."""


class Mark(NamedTuple):
    """A mark in a text: where its spelling begins and ends, in bytes, and the member's token."""

    start: int
    end: int
    token: int


class SpelledMarks:
    """The marks of one member in the text of a sequence.

    Where the pack has spelled a mark of the member in its answer, the member reads its own control
    token, provided that it preferred this token to the beginning of the spelling. Text of a prompt
    never becomes a control token.

    Attributes:
        found: The marks so far, in order.
    """

    def __init__(self, table: MarkTable | None) -> None:
        """Start without marks."""
        self.table = table or None
        self.found: list[Mark] = []
        self._preferred: dict[int, Tensor] = {}

    def copy(self) -> SpelledMarks:
        """An independent copy."""
        twin = copy.copy(self)
        twin.found, twin._preferred = list(self.found), dict(self._preferred)
        return twin

    def crop(self, length: int) -> None:
        """Forget what lies behind the first `length` bytes."""
        self.found = [mark for mark in self.found if mark.end <= length]
        self._preferred = {at: value for at, value in self._preferred.items() if at < length}

    def within(self, length: int) -> list[Mark]:
        """The marks that end within the first `length` bytes."""
        return [mark for mark in self.found if mark.end <= length]

    def note(self, text: bytes, places: Iterable[tuple[int, Tensor | None]]) -> None:
        """Remember what the member preferred where a mark may begin.

        Args:
            text: The whole text.
            places: Offsets, and the member's log-probabilities there, `[member columns]`, nats;
                None for none.
        """
        if self.table is None:
            return
        for at, logps in places:
            if logps is not None and text[at : at + 1] in self.table.begins:
                self._preferred[at] = self.table.preferred(logps)
        while len(self._preferred) > _KEPT:
            del self._preferred[min(self._preferred)]

    def search(self, text: bytes, start: int) -> bool:
        """Add the marks in `text[start:]`; returns whether there is a new one."""
        if self.table is None or not self._preferred:
            return False
        before = len(self.found)
        for at in sorted(self._preferred):
            mark = self._mark_at(text, at, self.table) if at >= start else None
            if mark and all(mark.end <= old.start or old.end <= at for old in self.found):
                self.found.append(mark)
        self.found.sort()
        return len(self.found) > before

    def _mark_at(self, text: bytes, at: int, table: MarkTable) -> Mark | None:
        for place, (spelling, index) in enumerate(table.id_of.items()):
            if text.startswith(spelling, at) and bool(self._preferred[at][place]):
                return Mark(at, at + len(spelling), index)
        return None


class MarkedTokenizer:
    """An `IncrementalTokenizer` for a text in which some marks are control tokens.

    Attributes:
        ids: The member's token ids.
        ends: Where each token ends in the text, in bytes.
    """

    def __init__(self, vocabulary: Vocabulary, lookahead: bool = True) -> None:
        """Start with the empty text."""
        self.vocabulary = vocabulary
        self._tail = IncrementalTokenizer(vocabulary, lookahead)
        self._marks: list[Mark] = []
        self._head_text, self._head_ids, self._head_ends = b"", list[int](), list[int]()

    @property
    def whole(self) -> bool:
        """See `IncrementalTokenizer`."""
        return self._tail.whole

    @property
    def text(self) -> bytes:
        """The text, without an incomplete character at its end."""
        return self._head_text + self._tail.text

    @property
    def ids(self) -> list[int]:
        """The member's token ids."""
        return self._head_ids + self._tail.ids if self._head_ids else self._tail.ids

    @property
    def ends(self) -> list[int]:
        """Where each token ends in the text, in bytes."""
        if not self._head_ids:
            return self._tail.ends
        shift = len(self._head_text)
        return self._head_ends + [shift + end for end in self._tail.ends]

    def copy(self) -> MarkedTokenizer:
        """An independent copy."""
        twin = copy.copy(self)
        twin._tail = self._tail.copy()
        return twin

    def update(self, text: bytes, marks: Sequence[Mark] = ()) -> None:
        """Replace the text by `text`, in which `marks` are control tokens."""
        head = text[: marks[-1].end] if marks else b""
        if self._marks != list(marks) or self._head_text != head:
            self._marks, self._head_text = list(marks), head
            self._head_ids, self._head_ends = [], []
            for ids, ends in self._parts(text, marks):
                self._head_ids = self._head_ids + ids
                self._head_ends = self._head_ends + ends
        self._tail.update(text[len(head) :])

    def _parts(self, text: bytes, marks: Sequence[Mark]) -> Iterator[tuple[list[int], list[int]]]:
        """Token ids and where they end: of each text before a mark, then of the mark."""
        at = 0
        for mark in marks:
            ids, ends = self.vocabulary.encode_spans(text[at : mark.start])
            yield ids, [at + end for end in ends]
            yield [mark.token], [mark.end]
            at = mark.end


def spelled_ids(
    ids: Sequence[int], ends: Sequence[int], text: bytes, marks: Sequence[Mark], own: Vocabulary
) -> list[int]:
    """Ids of a text, with a control token in place of the ids that spell each mark.

    Args:
        ids: Token ids.
        ends: Where each of them ends in the text, in bytes. Every mark begins where one ends.
        text: Their bytes.
        marks: The marks.
        own: The vocabulary of the ids; it encodes what follows a mark inside a token.
    """
    found: list[int] = []
    at = 0
    for mark in marks:
        first = ends.index(mark.start) + 1 if mark.start else 0
        last = next(i for i, end in enumerate(ends) if end >= mark.end)
        found += [*ids[at:first], mark.token, *own.encode_bytes(text[mark.end : ends[last]])]
        at = last + 1
    return [*found, *ids[at:]]
