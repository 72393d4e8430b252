"""The bytes of every token of a tokenizer, computed for the whole vocabulary at once."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from string import hexdigits

import numpy as np

from packfuse.hf_compat.models import byte_characters
from packfuse.text.tokenizer_json import METASPACE

NEEDED = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF0)}
"""Bytes that a vocabulary must have tokens for; SmolLM2 has no tokens for some of the others."""

PROBE = "It's 42%:  a\n\n\tb 'é e\u0301 ﬁ 中文 ▁x\u00a0 😀\r\n\x07 "
"""A text that every vocabulary has to encode without changing it."""

_BYTE_OF_CHAR = {ord(char): byte for byte, char in byte_characters().items()}
_BYTE_FALLBACK = {
    f"<0x{high}{low}>": bytes.fromhex(high + low) for high, low in product(hexdigits, repeat=2)
}


def byte_table(
    tokens: Sequence[str | None],
    added: Mapping[int, str],
    controls: Collection[int],
    *,
    metaspace: bool,
) -> list[bytes | None]:
    r"""The bytes of every token id.

    A SentencePiece-style vocabulary spells a space as `▁` and a single byte as, for example,
    `<0x0A>`. In a byte-level vocabulary each character stands for one byte, and a token with any
    other character has no bytes.

    Args:
        tokens: Tokens by id, `[columns]`, as the vocabulary spells them; None for ids without one.
        added: Added tokens by id; a byte-level vocabulary spells these as plain text.
        controls: Ids of control tokens.
        metaspace: Whether the vocabulary is SentencePiece-style.

    Returns:
        Bytes by id, `[columns]`; None for control tokens and for tokens without bytes.

    Example:
        >>> byte_table(["▁the", "<0x0A>", "<s>", None], {}, [2], metaspace=True)
        [b' the', b'\n', None, None]
        >>> byte_table(["Ġthe", "中", "中"], {2: "中"}, [], metaspace=False)
        [b' the', None, b'\xe4\xb8\xad']
    """
    read = _sentencepiece_bytes if metaspace else _byte_level_bytes
    table = [read(token) if token else None for token in tokens]
    spelled = {} if metaspace else {index: text.encode() or None for index, text in added.items()}
    for index, token in {**spelled, **dict.fromkeys(controls)}.items():
        if index < len(table):
            table[index] = token
    return table


def _sentencepiece_bytes(token: str) -> bytes:
    return _BYTE_FALLBACK.get(token) or token.replace(METASPACE, " ").encode()


def _byte_level_bytes(token: str) -> bytes | None:
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
    # Nearly every byte string has one id. The few with several keep the last id here, and the
    # loop below adds the earlier ones.
    found: dict[bytes, tuple[int, ...]] = dict(zip(tokens, zip(used, strict=True), strict=True))
    last = np.fromiter((ids[0] for ids in found.values()), np.int64, len(found))
    for index in np.setdiff1d(used, last, assume_unique=True)[::-1].tolist():
        found[table[index]] = (index, *found[table[index]])
    return found
