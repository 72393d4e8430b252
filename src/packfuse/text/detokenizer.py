"""Generated token ids as text, while they are generated and up to a stop string."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from packfuse.text.vocabulary import ANSWER_TAGS, Vocabulary

_STAND_IN = 0xD800
"""The first of the lone surrogates that stand for control tokens: no decoded text has one."""

_STAND_INS = re.compile("[\ud800-\udfff]")


class StopStrings:
    """Stop strings, which also end an answer where a control token is what they spell.

    `<|im_start|>user` matches this text, and the control token `<|im_start|>` before `user`. A
    control token has no text of its own, so a character that no text has stands for it.

    Attributes:
        strings: The stop strings.
        patterns: What is searched for, and the stop string that each stands for.
    """

    def __init__(self, vocabulary: Vocabulary, strings: Sequence[str]) -> None:
        """The stop strings of an answer in one vocabulary."""
        self.vocabulary, self.strings = vocabulary, tuple(strings)
        used = _controls_in(vocabulary, self.strings)
        self._stand_ins = {
            vocabulary.controls[name]: chr(_STAND_IN + place) for place, name in enumerate(used)
        }
        self.patterns: dict[str, str] = {}
        for string in self.strings:
            tokens = string
            for name in used:
                tokens = tokens.replace(name, self._stand_ins[vocabulary.controls[name]])
            self.patterns |= {string: string, tokens: string}

    def decode(self, ids: Iterable[int], decoder: codecs.IncrementalDecoder) -> str:
        """The text of `ids`, with a stand-in for each control token that a stop string spells."""
        if not self._stand_ins:
            return decoder.decode(self.vocabulary.decode_answer(ids))
        parts = []
        for index in ids:
            stand_in = self._stand_ins.get(index)
            parts.append(stand_in or decoder.decode(self.vocabulary.decode_answer([index])))
        return "".join(parts)

    def find(self, text: str) -> tuple[int, str] | None:
        """Where the stop string begins that is complete first, and that stop string.

        Of several that end at one place, the first of `strings` counts.
        """
        found = [
            (text.find(pattern) + len(pattern), number, text.find(pattern), string)
            for number, (pattern, string) in enumerate(self.patterns.items())
            if pattern in text
        ]
        if not found:
            return None
        _, _, start, string = min(found)
        return start, string

    def held(self, text: str) -> int:
        """Length of the end of a text that may be the beginning of a stop string."""
        return max((overlap(text, pattern) for pattern in self.patterns), default=0)


@lru_cache(maxsize=64)
def _spelled(controls: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(controls, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _controls_in(vocabulary: Vocabulary, strings: Sequence[str]) -> list[str]:
    """The control tokens without text that the strings spell, longest first."""
    if not strings:
        return []
    pattern = _spelled(tuple(vocabulary.controls))
    names = {name for string in strings for name in pattern.findall(string)}
    return sorted(names.difference(ANSWER_TAGS), key=len, reverse=True)


class StreamDetokenizer:
    """Decodes generated ids step by step.

    Text is held back while it is an incomplete character or may become a stop string. Nothing from
    a stop string on is ever returned. All returned strings joined are the whole text.

    Attributes:
        stopped: The stop string that ended the text; None as long as none has.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = ()) -> None:
        """`stop` strings end the text and are not part of it."""
        self.stopped: str | None = None
        self._stop = StopStrings(vocabulary, stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, ids: Iterable[int]) -> str:
        """Add ids, and return the new text that no later id can change."""
        return self._emit(self._stop.decode(ids, self._decoder))

    def finish(self) -> str:
        """Return the text that was held back; no more ids follow."""
        tail = self._emit(self._decoder.decode(b"", final=True))
        if self.stopped is None:
            tail, self._held = tail + _STAND_INS.sub("", self._held), ""
        return tail

    def _emit(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = self._stop.find(text)
        if found is not None:
            start, self.stopped = found
            self._held = ""
            return _STAND_INS.sub("", text[:start])
        kept = len(text) - self._stop.held(text)
        self._held = text[kept:]
        return _STAND_INS.sub("", text[:kept])


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


def count_until_stop(ids: Sequence[int], vocabulary: Vocabulary, stop: Sequence[str]) -> int:
    """Number of ids up to the one that completes a stop string; all if there is none."""
    detokenizer = StreamDetokenizer(vocabulary, stop)
    for number, index in enumerate(ids):
        detokenizer.push([index])
        if detokenizer.stopped is not None:
            return number + 1
    return len(ids)
