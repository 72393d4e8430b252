"""Alignment by minimum edit distance (MinED), the method of PackLLM."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment, Pairing
from packfuse.alignment.lexicon import equal_tokens
from packfuse.alignment.map_cache import cached_map
from packfuse.alignment.pairings import Mapped, Same
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

VERSION = 1
"""Increased whenever `mine` returns a different map; part of the cache key."""

_CELLS = 2**24
"""Edit distances computed at a time: 32 MiB."""


class Mined(Alignment):
    """Each reference token has the probability of the member token with the nearest spelling.

    In the paper's code, members are also fed the reference's ids through the same map, one id for
    each, even where no similar token exists. With `inputs="text"` they are fed the text in their
    own tokens.

    Example:
        >>> Mined(inputs="text")
        Mined(inputs='text', controls='carry')
    """

    name: ClassVar[str] = "mined"
    source: ClassVar[str] = "PackLLM, arXiv 2404.11531, section 3; MinED is FuseLLM's, 2401.10491"

    inputs: Literal["map", "text"] = "map"
    """What members are fed: mapped ids (as in the paper), or the text in their own tokens."""
    controls: Literal["carry", "drop"] = "carry"
    """Whether control tokens are carried by their spelling or role, or dropped as in the paper."""

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Compute the map, which takes up to minutes, or load it from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        table = cached_map(
            "mined", VERSION, member, reference, lambda: mine(member, reference, progress)
        )
        return Mapped(
            table,
            member,
            reference,
            same_ids=self.inputs == "map",
            published=self.controls == "drop",
        )

    @property
    def reading(self) -> Mined:
        """With `inputs="text"`: the paper, too, computes prompt losses in the members' tokens."""
        return self if self.inputs == "text" else self.model_copy(update={"inputs": "text"})


def mine(
    member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """The nearest member token for every reference id.

    The strings that are compared are the texts that tokens stand for, so that it does not matter
    how a tokenizer spells spaces and bytes. A byte that is not UTF-8 counts as one character.

    A token with the same bytes is taken first, then the smallest Levenshtein distance, and of equal
    distances the lowest id. A control token maps to the control token with the same spelling or
    role; if there is none, its spelling is compared with text tokens (this is used only for the
    ids that a member is fed). No text token maps to a control token.

    Args:
        member: The vocabulary whose tokens are searched.
        reference: The vocabulary whose tokens are mapped.
        progress: Called with (done, total), in strings without an equal token.

    Returns:
        Member ids `[reference columns]`; -1 for padding.
    """
    table = equal_tokens(member, reference)
    for index in sorted(reference.control_ids - set(np.flatnonzero(table >= 0).tolist())):
        table[index] = _control(member, reference, index)
    unmapped = {index: _string(reference, index) for index in np.flatnonzero(table < 0).tolist()}
    wanted = {index: text for index, text in unmapped.items() if text}
    choices = sorted((ids[0], token) for token, ids in member.ids_of.items())
    strings = list(dict.fromkeys(wanted.values()))
    best = nearest(strings, [_text(token) for _, token in choices], progress)
    nearest_id = {text: choices[at][0] for text, at in zip(strings, best.tolist(), strict=True)}
    for index, text in wanted.items():
        table[index] = nearest_id[text]
    return table


def _control(member: Vocabulary, reference: Vocabulary, index: int) -> int:
    """The member's control token with the same spelling, or at the same place of `prefix_ids`.

    Returns:
        The id; -1 if there is none.
    """
    if index not in reference.prefix_ids:
        return member.controls.get(reference.spell(index), -1)
    place = reference.prefix_ids.index(index)
    begins = member.prefix_ids[place] if place < len(member.prefix_ids) else -1
    return member.controls.get(reference.spell(index), begins)


def _string(vocabulary: Vocabulary, index: int) -> str:
    """The string of a token that is compared; empty for padding."""
    token = vocabulary.token_bytes[index]
    if token is not None:
        return _text(token)
    return vocabulary.spell(index) if index in vocabulary.control_ids else ""


def _text(token: bytes) -> str:
    return token.decode(errors="surrogateescape")


def nearest(
    strings: Sequence[str], choices: Sequence[str], progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """Which of `choices` has the smallest Levenshtein distance to each string.

    Characters that occur in no choice all have the same effect: they are replaced or deleted. So
    strings that differ only in these are compared once.

    Args:
        strings: The strings to find, `n` of them.
        choices: The strings to choose from.
        progress: Called with (done, total), in distinct strings.

    Returns:
        Indices into `choices`, `[n]`; of equal distances, the first.

    Example:
        >>> nearest(["cat", "zz"], ["cut", "cot", "x"]).tolist()
        [0, 2]
    """
    # Imported here because every pack imports this module, and few use it.
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
