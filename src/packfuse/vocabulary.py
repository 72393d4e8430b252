"""A tokenizer, seen as the bytes that its tokens stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from packfuse.errors import TokenizerError

FORMAT = 1
"""Version of the byte table; part of every fingerprint."""

_BYTE_OF_CHAR = {char: byte for byte, char in bytes_to_unicode().items()}
_REWRITES = {"NFC", "NFKC", "NFD", "NFKD", "Precompiled", "Lowercase", "StripAccents", "Strip"}


class Vocabulary:
    """The tokens of one member as bytes, and text as its tokens.

    Control tokens (special tokens, and added tokens that the chat template writes) stand for no
    bytes and never come out of `encode`: text that spells one stays text.

    Attributes:
        tokenizer: The Hugging Face tokenizer, untouched.
        columns: Width of the model's logits; ids from `len(tokenizer)` on are padding.
        token_bytes: Bytes by id; None for control tokens and padding.
        ids_of: Ids by bytes; the one that the tokenizer itself writes comes first.
        end_ids: Ids that end a turn or a text.
        prefix_ids: Ids that the tokenizer itself puts before a text (beginning of sequence).
        text_prefix: Bytes that the tokenizer puts before a text (the dummy space of Llama 2).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: int | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        """Read the byte table off a fast tokenizer.

        Raises:
            TokenizerError: if it has no fast backend, or its tokens do not stand for bytes.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TokenizerError(
                f"{tokenizer.name_or_path!r}: {type(tokenizer).__name__} has no fast backend",
                hint="save it as tokenizer.json with the tokenizers library",
            )
        self.tokenizer = tokenizer
        self.columns = max(columns or 0, len(tokenizer))
        spec: dict[str, Any] = json.loads(backend.to_str())
        self._spec_digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        self.control_ids = self._find_control_ids()
        self.token_bytes = self._read_bytes(spec)
        self.text_prefix = _dummy_prefix(spec)
        self._plain = self._plain_backend(spec)
        self.ids_of = self._index()
        eos = tokenizer.eos_token_id
        self.end_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *end_ids]))
        probe: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        first = next((i for i, t in enumerate(probe) if t not in self.control_ids), len(probe))
        self.prefix_ids = tuple(probe[:first])

    def _find_control_ids(self) -> frozenset[int]:
        template = self.tokenizer.chat_template or ""
        if isinstance(template, dict):
            template = "".join(template.values())
        return frozenset(
            index
            for index, token in self.tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.strip() and token.content in template)
        )

    def _read_bytes(self, spec: dict[str, Any]) -> list[bytes | None]:
        kinds = _kinds(spec["decoder"])
        byte_level = "ByteLevel" in kinds
        if not byte_level and not kinds & {"ByteFallback", "Metaspace"}:
            raise TokenizerError(
                f"{self.tokenizer.name_or_path!r}: decoder {sorted(kinds)} does not map to bytes",
                hint="byte-level BPE and SentencePiece-style tokenizers are supported",
            )
        table: list[bytes | None] = [None] * self.columns
        added = self.tokenizer.added_tokens_decoder
        for token, index in self.tokenizer.get_vocab().items():
            if index in self.control_ids:
                continue
            if index in added:
                table[index] = added[index].content.encode()
            elif byte_level:
                if all(char in _BYTE_OF_CHAR for char in token):
                    table[index] = bytes(_BYTE_OF_CHAR[char] for char in token)
            elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                table[index] = bytes([int(token[3:5], 16)])
            else:
                table[index] = token.replace("▁", " ").encode()
        return [b or None for b in table]

    def _plain_backend(self, spec: dict[str, Any]) -> Tokenizer:
        """A private copy that writes text only: no templates, no rewriting, no control tokens."""
        spec = {**spec, "truncation": None, "padding": None, "post_processor": None}
        spec["normalizer"] = _faithful(spec["normalizer"])
        spec["pre_tokenizer"] = _without_prefix(spec["pre_tokenizer"])
        spec["added_tokens"] = [
            token
            for token in spec["added_tokens"]
            if token["special"] or token["id"] not in self.control_ids
        ]
        plain = Tokenizer.from_str(json.dumps(spec))
        plain.encode_special_tokens = True
        return plain

    def _index(self) -> dict[bytes, tuple[int, ...]]:
        found: dict[bytes, list[int]] = {}
        for index, token in enumerate(self.token_bytes):
            if token is not None:
                found.setdefault(token, []).append(index)
        for token, ids in found.items():
            if len(ids) > 1:
                written = self.encode(token.decode(errors="replace"))
                ids.sort(key=lambda i: i != (written[0] if len(written) == 1 else -1))
        return {token: tuple(ids) for token, ids in found.items()}

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` as text, without anything before or after it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [encoding.ids for encoding in encodings]
        for index, ids in enumerate(rows):
            if not self.control_ids.isdisjoint(ids):
                rows[index] = self._split_control(texts[index])
        return rows

    def _split_control(self, text: str) -> list[int]:
        """Encode text in which a control token's spelling was recognized: cut the spelling in two."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if index in self.control_ids and end - start > 1:
                cut = start + 1
                return self.encode(text[:cut]) + self.encode(text[cut:])
        return [index for index in encoding.ids if index not in self.control_ids]

    def encode_bytes(self, data: bytes) -> list[int]:
        """`encode` for bytes that need not be valid UTF-8; stray bytes become byte tokens."""
        try:
            return self.encode(data.decode())
        except UnicodeDecodeError as error:
            start, end = error.start, error.end
        stray = [self.ids_of[data[i : i + 1]][0] for i in range(start, end) if data[i : i + 1] in self.ids_of]
        return self.encode(data[:start].decode()) + stray + self.encode_bytes(data[end:])

    def first_token(self, piece: bytes) -> int | None:
        """The first token that the tokenizer writes for `piece`, which may cut a character."""
        try:
            ids = self.encode(piece.decode())
        except UnicodeDecodeError:
            for length in range(len(piece), 0, -1):
                if piece[:length] in self.ids_of:
                    return self.ids_of[piece[:length]][0]
            return None
        return ids[0] if ids else None

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; control tokens stand for none."""
        return b"".join(self.token_bytes[index] or b"" for index in ids)

    def spell(self, index: int) -> str:
        """A token as people read it, control tokens included."""
        token = self.token_bytes[index] if index < self.columns else None
        if token is None:
            return str(self.tokenizer.convert_ids_to_tokens(index))
        return token.decode(errors="replace")

    @cached_property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Bytes by id, `[columns]`; 0 for control tokens and padding."""
        return np.array([len(token or b"") for token in self.token_bytes])

    @cached_property
    def sorted_bytes(self) -> list[bytes]:
        """The distinct tokens in byte order: what begins with one prefix is one range."""
        return sorted(self.ids_of)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides how text becomes tokens."""
        parts = [FORMAT, self._spec_digest, self.columns, sorted(self.control_ids), self.end_ids]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __repr__(self) -> str:
        """For people."""
        return f"Vocabulary({self.tokenizer.name_or_path!r}, {len(self.ids_of):,} byte strings)"


def _kinds(node: Any) -> set[str]:
    """Every `type` in a part of a tokenizer's specification."""
    if isinstance(node, list):
        return set().union(*map(_kinds, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    here = {node["type"]} if isinstance(node.get("type"), str) else set()
    return here.union(*map(_kinds, node.values()))


def _members(node: Any, key: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node[key]) if node["type"] == "Sequence" else [node]


def _dummy_prefix(spec: dict[str, Any]) -> bytes:
    steps = _members(spec["normalizer"], "normalizers")
    prepends = any(step["type"] == "Prepend" for step in steps)
    pre = _members(spec["pre_tokenizer"], "pretokenizers")
    metaspace = any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in pre
    )
    level = any(step["type"] == "ByteLevel" and step.get("add_prefix_space") for step in pre)
    return b" " if prepends or metaspace or level else b""


def _faithful(node: Any) -> Any:
    """The normalizer without the steps that change the text (they lose bytes)."""
    drop = _REWRITES | {"Prepend"}
    steps = [step for step in _members(node, "normalizers") if step["type"] not in drop]
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _without_prefix(node: Any) -> Any:
    """The pre-tokenizer without a dummy space at the front."""
    changed: list[dict[str, Any]] = []
    for step in _members(node, "pretokenizers"):
        if step["type"] == "Metaspace":
            step = {**step, "prepend_scheme": "never"}
        elif step["type"] == "ByteLevel":
            step = {**step, "add_prefix_space": False}
        changed.append(step)
    return {"type": "Sequence", "pretokenizers": changed} if changed else None
