"""A growing text in a member's own tokens."""

from __future__ import annotations

from packfuse.vocabulary import Vocabulary

_TAIL = 24
"""Tokens at the end that are written anew when text is appended."""

_OVERLAP = 8
"""Tokens that must come out as before for the rewritten tail to be trusted."""


class TextPath:
    """The member's tokenization of a text that grows and sometimes shrinks.

    The path is a function of the text alone. Only the tail is written anew, as long as it joins
    what was there; trailing white space is written as it would be before a word, because that is
    what pre-tokenizers that look ahead will do to it.

    Attributes:
        ids: The member's tokens.
        ends: Where each token ends, in bytes.
        whole: Whether the text ends on a character boundary; if not, `ids` stop before it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Start with the empty text."""
        self.vocabulary = vocabulary
        self.text = b""
        self.ids: list[int] = []
        self.ends: list[int] = []
        self.whole = True

    def copy(self) -> TextPath:
        """An independent copy."""
        twin = TextPath(self.vocabulary)
        twin.text, twin.whole = self.text, self.whole
        twin.ids, twin.ends = list(self.ids), list(self.ends)
        return twin

    def update(self, text: bytes) -> None:
        """Move to `text`."""
        body = text[: len(text) - _incomplete(text)]
        self.whole = len(body) == len(text)
        if body == self.text:
            return
        tail = _TAIL if body.startswith(self.text) else len(self.ids)
        while True:
            keep = self._joint(len(self.ids) - tail, body)
            start = self.ends[keep - 1] if keep else 0
            fresh = self._write(body[start:])
            if keep == 0 or self.ids[keep : keep + _OVERLAP] == fresh[:_OVERLAP]:
                break
            tail *= 4
        del self.ids[keep:], self.ends[keep:]
        for index in fresh:
            start += len(self.vocabulary.token_bytes[index] or b"")
            self.ids.append(index)
            self.ends.append(start)
        self.text = body

    def _joint(self, index: int, body: bytes) -> int:
        """The last boundary at or before token `index` where a word begins."""
        for keep in range(min(index, len(self.ids) - _OVERLAP), 0, -1):
            end = self.ends[keep - 1]
            if end < len(body) and body[end : end + 1].isspace() and not body[end - 1 : end].isspace():
                return keep
        return 0

    def _write(self, data: bytes) -> list[int]:
        if not data[-1:].isspace():
            return self.vocabulary.encode_bytes(data)
        ids, end = [], 0
        for index in self.vocabulary.encode_bytes(data + b"a"):
            size = len(self.vocabulary.token_bytes[index] or b"")
            if end + size > len(data):
                break
            ids.append(index)
            end += size
        return ids + self.vocabulary.encode_bytes(data[end:])


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
