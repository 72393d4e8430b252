"""Alignment by the first token of a token's encoding, the method of UniTE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from packfuse.alignment.base import Alignment, Pairing
from packfuse.alignment.lexicon import Lexicon, equal_tokens
from packfuse.alignment.map_cache import cached_map
from packfuse.alignment.pairings import Mapped, Same
from packfuse.progress import ProgressCallback
from packfuse.text.vocabulary import Vocabulary

VERSION = 1
"""Increased whenever `first_tokens` returns a different map; part of the cache key."""

_CHUNK = 16_384


class Prefix(Alignment):
    """Each reference token has the probability of the member token with the same bytes.

    If there is none, it has that of the first token of the member's encoding of its bytes. One
    member token may so be the first token for several reference tokens, and its probability counts
    for each of them, as in the paper. The alignment "bytes" splits it instead.

    Members are fed the text in their own tokens, tokenized as it is at every step (no lookahead).

    Example:
        >>> Prefix()
        Prefix()
    """

    name: ClassVar[str] = "prefix"
    source: ClassVar[str] = "UniTE, arXiv 2410.03777, section 4"

    def pair(
        self, member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
    ) -> Pairing:
        """Look up every reference token, or load the map from the cache."""
        if member.text_digest == reference.text_digest:
            return Same(member, reference)
        table = cached_map(
            "prefix", VERSION, member, reference, lambda: first_tokens(member, reference, progress)
        )
        return Mapped(table, member, reference, lookahead=False)

    def lexicon(self, vocabularies: Sequence[Vocabulary]) -> Lexicon | None:
        """A lexicon if the vocabularies differ."""
        distinct = {vocabulary.fingerprint for vocabulary in vocabularies}
        return Lexicon(vocabularies) if len(distinct) > 1 else None


def first_tokens(
    member: Vocabulary, reference: Vocabulary, progress: ProgressCallback | None = None
) -> NDArray[np.int64]:
    """The member's equal token for every reference token, or the first token of its encoding.

    Args:
        member: The vocabulary whose tokens are searched.
        reference: The vocabulary whose tokens are mapped.
        progress: Called with (done, total), in tokens without an equal token.

    Returns:
        Member ids `[reference columns]`; -1 for control tokens, padding, and bytes that the member
        cannot encode.
    """
    table = equal_tokens(member, reference)
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
    found = [ids[0] if ids else None for ids in vocabulary.encode_batch(texts)]
    for at, (token, text) in enumerate(zip(tokens, texts, strict=True)):
        if token != text.encode():
            found[at] = vocabulary.first_token(token)
    return [-1 if first is None else first for first in found]
