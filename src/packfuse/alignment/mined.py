"""Alignment by minimum edit distance (MinED): PackLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment, Mapped, Pairing, Same
from packfuse.alignment.lexicon import twins
from packfuse.alignment.map_cache import cached_map
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

VERSION = 1
"""Changes whenever `mine` would give another map; part of the cache key."""

_CELLS = 2**24
"""Distances worked out at a time: 32 MiB."""


class Mined(Alignment):
    """A reference token has the probability of the member token that is spelled most like it.

    The paper's code has members read the reference's ids through the same map, one for one, even
    where no like token exists; "text" lets them read the text in their own tokens.
    """

    name: ClassVar[str] = "mined"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, section 3; MinED is FuseLLM's, 2401.10491"

    inputs: Literal["map", "text"] = "map"
    """What members read: mapped ids (the paper's), or the text in their own tokens."""

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Mine the map, which takes up to minutes, or take it from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        table = cached_map(
            "mined", VERSION, member, reference, lambda: mine(member, reference, progress)
        )
        return Mapped(table, reference, same_ids=self.inputs == "map")

    @property
    def reading(self) -> Mined:
        """The paper, too, picks the reference by what members make of the text itself."""
        return self if self.inputs == "text" else self.model_copy(update={"inputs": "text"})


def mine(
    member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """The member's most alike token for every reference id.

    Strings are compared as the text that tokens stand for, character by character, a stray byte
    being one character: how a family marks spaces or spells bytes does not count. Twins come first,
    then the smallest edit distance, of equals the lowest id. Control tokens map to control tokens
    of the same spelling or role; those without are likened to text, for reading only. No text maps
    to a control token.

    Args:
        member: Whose tokens.
        reference: For whose tokens.
        progress: Called with (done, total) in strings without a twin.

    Returns:
        Member ids `[reference columns]`; -1 for padding.
    """
    table = twins(member, reference)
    for index in sorted(reference.control_ids - set(np.flatnonzero(table >= 0).tolist())):
        table[index] = _control(member, reference, index)
    named = {index: _string(reference, index) for index in np.flatnonzero(table < 0).tolist()}
    wanted = {index: name for index, name in named.items() if name}
    choices = sorted((ids[0], token) for token, ids in member.ids_of.items())
    strings = list(dict.fromkeys(wanted.values()))
    best = nearest(strings, [_text(token) for _, token in choices], progress)
    likest = {name: choices[at][0] for name, at in zip(strings, best.tolist(), strict=True)}
    for index, name in wanted.items():
        table[index] = likest[name]
    return table


def _control(member: Vocabulary, reference: Vocabulary, index: int) -> int:
    """The member's control token of the same spelling, or that begins a text likewise; or -1."""
    if index not in reference.prefix_ids:
        return member.controls.get(reference.spell(index), -1)
    place = reference.prefix_ids.index(index)
    begins = member.prefix_ids[place] if place < len(member.prefix_ids) else -1
    return member.controls.get(reference.spell(index), begins)


def _string(vocabulary: Vocabulary, index: int) -> str:
    token = vocabulary.token_bytes[index]
    if token is not None:
        return _text(token)
    return vocabulary.spell(index) if index in vocabulary.control_ids else ""


def _text(token: bytes) -> str:
    return token.decode(errors="surrogateescape")


def nearest(
    strings: Sequence[str], choices: Sequence[str], progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """Which of `choices` has the smallest edit distance to each string; of equals, the first.

    Characters that no choice has are alike in that they have to be replaced or deleted, so strings
    that differ in nothing else are compared once.
    """
    # Every pack loads this file; few mine.
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    alphabet = set("".join(choices))
    foreign = next(char for char in map(chr, count(0xE000)) if char not in alphabet)
    patterns = ["".join(c if c in alphabet else foreign for c in text) for text in strings]
    distinct = sorted(set(patterns), key=lambda text: (len(text), text))
    found: dict[str, int] = {}
    size = max(1, _CELLS // max(1, len(choices)))
    for start in range(0, len(distinct), size):
        chunk = distinct[start : start + size]
        distances = process.cdist(
            chunk, choices, scorer=Levenshtein.distance, dtype=np.uint16, workers=-1
        )
        found.update(zip(chunk, distances.argmin(1).tolist(), strict=True))
        if progress:
            progress(start + len(chunk), len(distinct))
    return np.array([found[pattern] for pattern in patterns], dtype=np.int64)
