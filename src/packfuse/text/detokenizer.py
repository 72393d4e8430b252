"""Token ids in, text out: piece by piece, never half a character, never part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from packfuse.text.vocabulary import Vocabulary


class StreamDetokenizer:
    """Turns generated ids into text as they come.

    A piece of text is held back while it may still become a stop string; what follows a stop string
    is never emitted. The pieces joined are the whole text.

    Attributes:
        stopped: The stop string that ended the text, once one has.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        """`stop` strings end the text and are not part of it."""
        self.vocabulary, self.stop = vocabulary, tuple(stop)
        self.stopped: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, ids: Iterable[int]) -> str:
        """The text that is certain after these ids."""
        return self._emit(self._decoder.decode(self.vocabulary.spoken(ids)))

    def finish(self) -> str:
        """What was held back."""
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
            # The stop string that is complete first; among several, the first in the list.
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        keep = max((overlap(text, s) for s in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def detokenize(
    ids: Sequence[int], vocabulary: Vocabulary, stop: Sequence[str]
) -> tuple[str, str | None]:
    """All of the text, and the stop string that ended it."""
    emitter = StreamDetokenizer(vocabulary, stop)
    text = emitter.push(ids) + emitter.finish()
    return text, emitter.stopped
