"""The bytes that a tokenizer's tokens stand for, read off its whole vocabulary at once."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from string import hexdigits

import numpy as np

from packfuse.hf_compat import byte_characters
from packfuse.specification import MARK

_BYTE_OF_CHAR = {ord(char): byte for byte, char in byte_characters().items()}
_BYTE_TOKENS = {
    f"<0x{high}{low}>": bytes.fromhex(high + low) for high, low in product(hexdigits, repeat=2)
}


def byte_table(
    tokens: Sequence[str | None],
    added: Mapping[int, str],
    controls: Collection[int],
    *,
    marked: bool,
) -> list[bytes | None]:
    r"""Bytes by id; None for control tokens and for ids without a token.

    In a SentencePiece-style vocabulary a mark is a space and `<0x0A>` a byte; in a byte-level one
    every character is a byte, and tokens with other characters stand for none.

    Args:
        tokens: Tokens by id, as the vocabulary spells them; None for ids without one.
        added: Added tokens by id, which a byte-level vocabulary spells as they are.
        controls: Ids that stand for no bytes.
        marked: Whether the vocabulary is SentencePiece-style.

    Example:
        >>> byte_table(["▁the", "<0x0A>", "<s>", None], {}, [2], marked=True)
        [b' the', b'\n', None, None]
        >>> byte_table(["Ġthe", "中", "中"], {2: "中"}, [], marked=False)
        [b' the', None, b'\xe4\xb8\xad']
    """
    table = [(_marked if marked else _level)(token) if token else None for token in tokens]
    spelled = {} if marked else {index: token.encode() or None for index, token in added.items()}
    for index, token in {**spelled, **dict.fromkeys(controls)}.items():
        if index < len(table):
            table[index] = token
    return table


def _marked(token: str) -> bytes:
    return _BYTE_TOKENS.get(token) or token.replace(MARK, " ").encode()


def _level(token: str) -> bytes | None:
    try:
        return codecs.charmap_encode(token, "strict", _BYTE_OF_CHAR)[0]
    except UnicodeEncodeError:
        return None


def ids_by_bytes(table: Sequence[bytes | None]) -> dict[bytes, tuple[int, ...]]:
    """The ids of each byte string, ascending.

    Example:
        >>> ids_by_bytes([b"a", None, b"b", b"a"])
        {b'a': (0, 3), b'b': (2,)}
    """
    used = [index for index, token in enumerate(table) if token is not None]
    tokens = [token for token in table if token is not None]
    # Nearly every byte string has one id: those with several are put right afterwards.
    found: dict[bytes, tuple[int, ...]] = dict(zip(tokens, zip(used, strict=True), strict=True))
    last = np.fromiter((ids[0] for ids in found.values()), np.int64, len(found))
    for index in np.setdiff1d(used, last, assume_unique=True)[::-1].tolist():
        found[table[index]] = (index, *found[table[index]])
    return found
