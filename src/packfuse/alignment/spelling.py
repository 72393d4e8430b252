"""How the tokens of one vocabulary are spelled in another: text tokens, and marks of the first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from packfuse.text.vocabulary import Vocabulary


def unshared_marks(vocabulary: Vocabulary, other: Vocabulary) -> dict[int, bytes]:
    """By id, the marks that another vocabulary has to spell: it has no such control token."""
    shared = {name.encode() for name, index in other.controls.items() if index < other.columns}
    return {index: name for index, name in vocabulary.marks.items() if name not in shared}


def spelled_lengths(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Number of bytes by id, `[columns]`, of text tokens and marks; 0 for all others."""
    found = vocabulary.lengths.copy()
    for index, spelling in vocabulary.marks.items():
        found[index] = len(spelling)
    return found


def spelled_bytes(vocabulary: Vocabulary, index: int) -> bytes | None:
    """The bytes of a text token or a mark; None for any other control token and padding."""
    token = vocabulary.token_bytes[index]
    return vocabulary.marks.get(index) if token is None else token
