"""Alignment by the first sub-token: UniTE's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment, Mapped, Pairing, Same
from packfuse.alignment.lexicon import Lexicon, twins
from packfuse.alignment.map_cache import cached_map
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

VERSION = 1
"""Changes whenever `first_tokens` would give another map; part of the cache key."""

_CHUNK = 16_384


class Prefix(Alignment):
    """A reference token has the probability of its twin, or of the first token that begins it.

    Members read the text in their own tokens, as it stands at every step. A token that begins
    several reference tokens lends its probability to each of them: the paper's way, which counts
    it more than once; "bytes" does not.
    """

    name: ClassVar[str] = "prefix"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Look up every reference token, or take the map from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        table = cached_map(
            "prefix", VERSION, member, reference, lambda: first_tokens(member, reference, progress)
        )
        return Mapped(table, reference, lookahead=False)

    def lexicon(self, vocabularies: Sequence[Vocabulary]) -> Lexicon | None:
        """Words are looked up where vocabularies differ."""
        kinds = {vocabulary.fingerprint for vocabulary in vocabularies}
        return Lexicon(vocabularies) if len(kinds) > 1 else None


def first_tokens(
    member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """The member's twin of every reference token, or the first token that it writes for it.

    Args:
        member: Whose tokens.
        reference: For whose tokens.
        progress: Called with (done, total) in tokens without a twin.

    Returns:
        Member ids `[reference columns]`; -1 for control tokens, padding, and bytes that the member
        cannot write.
    """
    table = twins(member, reference)
    missing = [token for token in reference.ids_of if token not in member.ids_of]
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        for token, first in zip(chunk, _first(member, chunk), strict=True):
            ids = [index for index in reference.ids_of[token] if index not in reference.end_ids]
            table[ids] = first
        if progress:
            progress(start + len(chunk), len(missing))
    return table


def _first(vocabulary: Vocabulary, tokens: Sequence[bytes]) -> list[int]:
    """`Vocabulary.first_token` of many tokens; -1 for none."""
    texts = [token.decode(errors="replace") for token in tokens]
    written = [ids[0] if ids else None for ids in vocabulary.encode_batch(texts)]
    for at, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        if token != text.encode():
            written[at] = vocabulary.first_token(token)
    return [-1 if first is None else first for first in written]
