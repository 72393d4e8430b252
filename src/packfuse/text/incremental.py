"""A growing text in a member's own tokens."""

from __future__ import annotations

import bisect

from packfuse.text.vocabulary import Vocabulary

_TAIL = 24
"""Tokens at the end that are written anew when text is appended."""

_OVERLAP = 8
"""Tokens that must come out as before for the rewritten tail to be trusted."""


class IncrementalTokenizer:
    """The member's tokenization of a text that grows and sometimes shrinks.

    The path is a function of the text alone. Only the tail is written anew, as long as it joins
    what was there; trailing white space is written as it would be before a word, because that is
    what pre-tokenizers that look ahead will do to it, or else (`ahead=False`) as it stands.

    Attributes:
        ids: The member's tokens.
        ends: Where each token ends, in bytes.
        whole: Whether the text ends on a character boundary; if not, `ids` stop before it.
    """

    def __init__(self, vocabulary: Vocabulary, lookahead: bool = True) -> None:
        """Start with the empty text."""
        self.vocabulary, self.lookahead = vocabulary, lookahead
        self.text = b""
        self.ids: list[int] = []
        self.ends: list[int] = []
        self.whole = True

    def copy(self) -> IncrementalTokenizer:
        """An independent copy."""
        twin = IncrementalTokenizer(self.vocabulary, self.lookahead)
        twin.text, twin.whole = self.text, self.whole
        twin.ids, twin.ends = list(self.ids), list(self.ends)
        return twin

    def update(self, text: bytes) -> None:
        """Move to `text`."""
        body = text[: len(text) - _incomplete(text)]
        self.whole = len(body) == len(text)
        if body == self.text:
            return
        kept = bisect.bisect_right(self.ends, _shared(self.text, body))
        del self.ids[kept:], self.ends[kept:]
        tail = _TAIL
        while True:
            keep = self._joint(len(self.ids) - tail, body)
            start = self.ends[keep - 1] if keep else 0
            fresh, ends = self._write(body[start:])
            if keep == 0 or self.ids[keep : keep + _OVERLAP] == fresh[:_OVERLAP]:
                break
            tail *= 4
        self.ids[keep:] = fresh
        self.ends[keep:] = [start + end for end in ends]
        self.text = body

    def _joint(self, index: int, body: bytes) -> int:
        """The last boundary at or before token `index` from which text is written as before."""
        for keep in range(min(index, len(self.ids) - _OVERLAP), 0, -1):
            if _separate(body, self.ends[keep - 1]):
                return keep
        return 0

    def _write(self, data: bytes) -> tuple[list[int], list[int]]:
        """Tokens, and where they end; white space at the end as it is written before a word."""
        hidden = self.lookahead and data[-1:].isspace()
        ids, ends = self.vocabulary.encode_spans(data + b"a" if hidden else data)
        kept = bisect.bisect_right(ends, len(data))
        if kept == len(ids):
            return ids, ends
        start = ends[kept - 1] if kept else 0
        rest, rest_ends = self.vocabulary.encode_spans(data[start:])
        return ids[:kept] + rest, ends[:kept] + [start + end for end in rest_ends]


def _shared(one: bytes, other: bytes) -> int:
    """Length of the common beginning."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (left, right) in pairs if left != right), len(other))


def _separate(text: bytes, at: int) -> bool:
    """Whether a word begins at `at`, or one long character follows another (no spaces there)."""
    before, after = text[at - 1], text[at : at + 1]
    if after.isspace():
        return not text[at - 1 : at].isspace()
    return before >= 0x80 and after >= b"\xe0"


def _incomplete(data: bytes) -> int:
    """How many bytes at the end belong to a character that is not there yet."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < size and byte < 0xF8 else 0
        if byte < 0x80:
            return 0
    return 0
