"""The tokens of a text that grows: only its end is tokenized again."""

from __future__ import annotations

import bisect
from collections.abc import Callable

from packfuse.text.vocabulary import Vocabulary

_TAIL = 24
"""Number of tokens at the end that are computed again when text is appended."""

_OVERLAP = 8
"""Number of tokens at the start of the new tail that must equal the old ones."""

_SEARCH = 64
"""Number of tokens before the tail among which a beginning of a word is searched for."""


class IncrementalTokenizer:
    """A member's tokenization of a text that is extended, and sometimes cut.

    The tokens are a function of the text, whatever the steps that led to it. To extend the text,
    its last tokens are computed again; if the first of them differ from the old ones, more are.

    Attributes:
        ids: The member's token ids.
        ends: Where each token ends in the text, in bytes.
        whole: Whether the text ends at a character boundary; if not, `ids` leave out the last,
            incomplete character.
    """

    def __init__(self, vocabulary: Vocabulary, lookahead: bool = True) -> None:
        """Start with the empty text.

        Args:
            vocabulary: The member's vocabulary.
            lookahead: Tokenize trailing white space as if a word followed. Many pre-tokenizers
                look ahead, so that these are the tokens that white space will have later.
        """
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
        """Replace the text by `text`, and update the attributes."""
        body = text[: len(text) - _incomplete(text)]
        self.whole = len(body) == len(text)
        if body == self.text:
            return
        kept = bisect.bisect_right(self.ends, _common_length(self.text, body))
        del self.ids[kept:], self.ends[kept:]
        tail = _TAIL
        while True:
            keep = self._restart_at(len(self.ids) - tail, body)
            start = self.ends[keep - 1] if keep else 0
            fresh, ends = self._encode(body[start:])
            if keep == 0 or self.ids[keep : keep + _OVERLAP] == fresh[:_OVERLAP]:
                break
            tail *= 4
        self.ids[keep:] = fresh
        self.ends[keep:] = [start + end for end in ends]
        self.text = body

    def _restart_at(self, index: int, body: bytes) -> int:
        """The most tokens to keep, up to `index`, after which the text can be tokenized alone.

        That is where a word begins. In a long text without one, BPE can be cut between any two
        tokens: a merge across the cut depends on the tokens at its two sides only, and the one
        after it is compared with the old one (`_OVERLAP`).
        """
        last = min(index, len(self.ids) - _OVERLAP)
        if not self.vocabulary.is_bpe:
            return self._last_where(_word_begins, body, last, 0)
        low = max(0, last - _SEARCH)
        word = self._last_where(_word_begins, body, last, low)
        return word or self._last_where(_character_begins, body, last, low)

    def _last_where(
        self, begins: Callable[[bytes, int], bool], body: bytes, last: int, low: int
    ) -> int:
        """The most tokens, from `last` down to more than `low`, before such a place; or none."""
        found = (keep for keep in range(last, low, -1) if begins(body, self.ends[keep - 1]))
        return next(found, 0)

    def _encode(self, data: bytes) -> tuple[list[int], list[int]]:
        """Token ids of `data` and where they end, in bytes, with `lookahead`."""
        as_before_word = self.lookahead and data[-1:].isspace()
        ids, ends = self.vocabulary.encode_spans(data + b"a" if as_before_word else data)
        kept = bisect.bisect_right(ends, len(data))
        if kept == len(ids):
            return ids, ends
        start = ends[kept - 1] if kept else 0
        rest, rest_ends = self.vocabulary.encode_spans(data[start:])
        return ids[:kept] + rest, ends[:kept] + [start + end for end in rest_ends]


def _common_length(one: bytes, other: bytes) -> int:
    """Length of the common prefix."""
    if other.startswith(one):
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (left, right) in pairs if left != right), len(other))


def _word_begins(text: bytes, at: int) -> bool:
    """Whether a run of white space begins at `at`.

    In scripts without spaces: whether a character of three or more bytes begins there, after a
    character that is not ASCII.
    """
    before, after = text[at - 1], text[at : at + 1]
    if after.isspace():
        return not text[at - 1 : at].isspace()
    return before >= 0x80 and after >= b"\xe0"


def _character_begins(text: bytes, at: int) -> bool:
    """Whether a character begins at `at`."""
    return at < len(text) and text[at] & 0xC0 != 0x80


def _incomplete(data: bytes) -> int:
    """Number of bytes at the end that are the start of an incomplete UTF-8 character."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < size and byte < 0xF8 else 0
        if byte < 0x80:
            return 0
    return 0
