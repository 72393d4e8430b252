"""Generated token ids as text, while they are generated and up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from packfuse.text.vocabulary import Vocabulary


class StreamDetokenizer:
    """Decodes generated ids step by step.

    Text is held back while it is an incomplete character or may become a stop string. Nothing from
    a stop string on is ever returned. All returned strings joined are the whole text.

    Attributes:
        stopped: The stop string that ended the text; None as long as none has.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        """`stop` strings end the text and are not part of it."""
        self.vocabulary, self.stop = vocabulary, tuple(stop)
        self.stopped: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, ids: Iterable[int]) -> str:
        """Add ids, and return the new text that no later id can change."""
        return self._emit(self._decoder.decode(self.vocabulary.decode_answer(ids)))

    def finish(self) -> str:
        """Return the text that was held back; no more ids follow."""
        tail = self._emit(self._decoder.decode(b"", final=True))
        if self.stopped is None:
            tail, self._held = tail + self._held, ""
        return tail

    def _emit(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(text.find(s) + len(s), i, s) for i, s in enumerate(self.stop) if s in text]
        if found:
            # The stop string that is complete first; if several are, the first of `stop`.
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        keep = max((overlap(text, s) for s in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`, but not all of `stop`.

    Example:
        >>> overlap("one two EN", "END")
        2
    """
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def detokenize(
    ids: Sequence[int], vocabulary: Vocabulary, stop: Sequence[str]
) -> tuple[str, str | None]:
    """The text of `ids` up to a stop string, and that stop string or None."""
    detokenizer = StreamDetokenizer(vocabulary, stop)
    text = detokenizer.push(ids) + detokenizer.finish()
    return text, detokenizer.stopped
