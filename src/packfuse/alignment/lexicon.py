"""Tokens looked up in other vocabularies by what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from packfuse.text.vocabulary import Vocabulary

Word = bytes
"""What a token stands for: its bytes; nothing at all for the end of a turn or text."""

END: Word = b""


class Lexicon:
    """Finds every member's token for words that some member proposes.

    A member's token for a word is the one with the word's bytes, or else the first that it writes
    for them. Ends are found by role. Other control tokens are words of nobody.

    Attributes:
        writable: By member `[columns]`, which tokens stand for words; of several tokens with the
            same bytes, the one that its tokenizer writes.
    """

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        """Nothing has been looked up yet."""
        self.vocabularies = list(vocabularies)
        self.writable = [torch.from_numpy(writable(vocabulary)) for vocabulary in vocabularies]
        self._known: list[dict[Word, int]] = [{} for _ in vocabularies]

    def union(self, proposals: Sequence[Sequence[int]]) -> list[list[int]]:
        """Every member's tokens for all proposed words, each word once.

        Args:
            proposals: By member, the writable ids that it proposes, best first.

        Returns:
            By member, one id a word; -1 where it has no token for it.
        """
        own: list[dict[Word, int]] = []
        for vocabulary, ids in zip(self.vocabularies, proposals, strict=True):
            said: dict[Word, int] = {}
            for index in ids:
                word = END if index in vocabulary.end_ids else vocabulary.token_bytes[index] or END
                said.setdefault(word, index)
            own.append(said)
        words = dict.fromkeys(word for said in own for word in said)
        return [
            [said[word] if word in said else self._find(k, word) for word in words]
            for k, said in enumerate(own)
        ]

    def _find(self, k: int, word: Word) -> int:
        known = self._known[k]
        if word not in known:
            known[word] = _look_up(self.vocabularies[k], word)
        return known[word]


def _look_up(vocabulary: Vocabulary, word: Word) -> int:
    if word == END:
        return vocabulary.end_ids[0] if vocabulary.end_ids else -1
    if word in vocabulary.ids_of:
        return vocabulary.ids_of[word][0]
    first = vocabulary.first_token(word)
    return -1 if first is None else first


def writable(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Which ids stand for words, `[columns]`: text, once for each byte string, and ends."""
    mask = np.zeros(vocabulary.columns, dtype=np.bool_)
    mask[[ids[0] for ids in vocabulary.ids_of.values()]] = True
    mask[list(vocabulary.end_ids)] = True
    return mask


def twins(member: Vocabulary, reference: Vocabulary) -> NDArray[np.int64]:
    """The member's token with the same bytes, or the same role, for every reference id.

    Returns:
        Member ids `[reference columns]`; -1 where there is none.
    """
    table = np.full(reference.columns, -1, dtype=np.int64)
    for token, ids in reference.ids_of.items():
        if token in member.ids_of:
            table[list(ids)] = member.ids_of[token][0]
    if member.end_ids:
        spelled = {member.spell(index): index for index in reversed(member.end_ids)}
        for index in reference.end_ids:
            table[index] = spelled.get(reference.spell(index), member.end_ids[0])
    return table
