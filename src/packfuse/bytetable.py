"""The bytes that a tokenizer's tokens stand for, read off its whole vocabulary at once."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from string import hexdigits

from transformers.convert_slow_tokenizer import bytes_to_unicode

from packfuse.specification import MARK

_BYTE_OF_CHAR = {ord(char): byte for byte, char in bytes_to_unicode().items()}
_BYTE_TOKENS = {
    f"<0x{high}{low}>": bytes.fromhex(high + low) for high, low in product(hexdigits, repeat=2)
}


def byte_table(
    ids: Mapping[str, int],
    columns: int,
    added: Mapping[int, str],
    controls: Collection[int],
    *,
    marked: bool,
) -> list[bytes | None]:
    """Bytes by id, `columns` of them; None for control tokens and for columns without a token.

    Args:
        ids: The vocabulary, added tokens included.
        columns: Length of the table; ids beyond it are left out.
        added: Added tokens by id; a byte-level vocabulary spells them as they are.
        controls: Ids that stand for no bytes.
        marked: Whether the vocabulary is SentencePiece-style.
    """
    table: list[bytes | None] = [None] * max(columns, max(ids.values()) + 1)
    for index, token in zip(
        ids.values(), (marked_bytes if marked else level_bytes)(ids), strict=True
    ):
        table[index] = token or None
    if not marked:
        for index, spelled in added.items():
            table[index] = spelled.encode() or None
    for index in controls:
        table[index] = None
    return table[:columns]


def marked_bytes(tokens: Iterable[str]) -> list[bytes]:
    r"""Bytes of SentencePiece-style tokens: a mark is a space, `<0x0A>` a byte.

    Example:
        >>> marked_bytes(["▁the", "<0x0A>"])
        [b' the', b'\n']
    """
    known = _BYTE_TOKENS.get
    return [known(token) or token.replace(MARK, " ").encode() for token in tokens]


def level_bytes(tokens: Iterable[str]) -> list[bytes | None]:
    """Bytes of byte-level tokens, whose characters are bytes; None for one with other characters.

    Example:
        >>> level_bytes(["Ġthe", "中"])
        [b' the', None]
    """
    return [_level_bytes(token) for token in tokens]


def _level_bytes(token: str) -> bytes | None:
    try:
        return codecs.charmap_encode(token, "strict", _BYTE_OF_CHAR)[0]
    except UnicodeEncodeError:
        return None


def ids_by_bytes(table: Sequence[bytes | None]) -> dict[bytes, tuple[int, ...]]:
    """The ids of each byte string, ascending; byte strings in the order of their first ids."""
    last = {token: index for index, token in enumerate(table) if token is not None}
    found: dict[bytes, tuple[int, ...]] = {token: (index,) for token, index in last.items()}
    earlier: dict[bytes, list[int]] = {}
    for index, token in enumerate(table):
        if token is not None and last[token] != index:
            earlier.setdefault(token, []).append(index)
    found.update({token: (*ids, last[token]) for token, ids in earlier.items()})
    return found
