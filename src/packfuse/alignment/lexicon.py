"""Tokens of one vocabulary, found in another by their bytes or by their role.

A *word* is what a token stands for: its bytes, the spelling of a mark (`packfuse.text.marks`), the
end of a turn or text, or, of the reference, any other control token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packfuse.alignment.spelling import spelled_bytes
from packfuse.text.vocabulary import Vocabulary

Word = bytes | int
"""The bytes of a token; `END` for a token that ends a turn or a text. A control token of the
reference that is neither a mark nor an end is its id."""

END: Word = b""


class Lexicon:
    """Finds the token of every member for each word that some member proposes.

    A member's token for a word is the one with exactly these bytes, or else the first token of the
    member's encoding of the word. Ends are found by their role. Other control tokens are words of
    the reference alone.

    Attributes:
        writable: One mask per member, bool `[columns]`: see `writable`, and its marks.
        unwritable: By member, the control tokens that are not words, `[n]`.
    """

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        """One vocabulary per member; nothing is looked up yet."""
        self.vocabularies = list(vocabularies)
        self.writable = [_words(vocabulary) for vocabulary in vocabularies]
        self.unwritable = [_not_words(vocabulary) for vocabulary in vocabularies]
        self._known: list[dict[Word, int]] = [{} for _ in vocabularies]

    def union(self, proposals: Sequence[Sequence[int]]) -> list[list[int]]:
        """Every member's tokens for all proposed words, each word once.

        Args:
            proposals: By member, the ids that it proposes, best first; all `writable`, or, of the
                reference, `unwritable`.

        Returns:
            By member, one id for each word; -1 for a word without a token.
        """
        proposed: list[dict[Word, int]] = []
        for vocabulary, ids in zip(self.vocabularies, proposals, strict=True):
            id_of: dict[Word, int] = {}
            for index in ids:
                id_of.setdefault(_word(vocabulary, index), index)
            proposed.append(id_of)
        words = dict.fromkeys(word for id_of in proposed for word in id_of)
        return [
            [id_of[word] if word in id_of else self._find(k, word) for word in words]
            for k, id_of in enumerate(proposed)
        ]

    def _find(self, k: int, word: Word) -> int:
        known = self._known[k]
        if word not in known:
            known[word] = _look_up(self.vocabularies[k], word)
        return known[word]


def _word(vocabulary: Vocabulary, index: int) -> Word:
    if index in vocabulary.end_ids:
        return END
    spelled = spelled_bytes(vocabulary, index)
    return index if spelled is None else spelled


def _words(vocabulary: Vocabulary) -> Tensor:
    mask = torch.from_numpy(writable(vocabulary))
    mask[list(vocabulary.marks)] = True
    return mask


def _not_words(vocabulary: Vocabulary) -> Tensor:
    words = {*vocabulary.end_ids, *vocabulary.marks}
    found = [i for i in vocabulary.control_ids if i < vocabulary.columns and i not in words]
    return torch.tensor(sorted(found), dtype=torch.long)


def _look_up(vocabulary: Vocabulary, word: Word) -> int:
    if isinstance(word, int):
        return -1
    if word == END:
        return vocabulary.end_ids[0] if vocabulary.end_ids else -1
    mark = next((index for index, name in vocabulary.marks.items() if name == word), None)
    if mark is not None:
        return mark
    if word in vocabulary.ids_of:
        return vocabulary.ids_of[word][0]
    first = vocabulary.first_token(word)
    return -1 if first is None else first


def writable(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """The ids that stand for words, bool `[columns]`: text tokens and ends.

    Of several ids with the same bytes, only the one that the tokenizer itself produces.
    """
    mask = np.zeros(vocabulary.columns, dtype=np.bool_)
    mask[[ids[0] for ids in vocabulary.ids_of.values()]] = True
    mask[list(vocabulary.end_ids)] = True
    return mask


def equal_tokens(member: Vocabulary, reference: Vocabulary) -> NDArray[np.int64]:
    """The member's token with the same bytes as each reference token; ends by their role.

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
