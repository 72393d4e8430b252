"""A tokenizer, seen as the bytes that its tokens stand for."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from packfuse.errors import TokenizerError
from packfuse.text.byte_table import byte_table, ids_by_bytes
from packfuse.text.tokenizer_json import (
    METASPACE,
    added_digest,
    added_tokens,
    digest,
    dummy_prefix,
    kinds,
    model_digest,
    plain,
    steps_around,
)

FORMAT = 3
"""Version of the byte table; part of every fingerprint."""

_MARKUP = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Marks that some vocabularies have control tokens for, and that belong to an answer's text."""
_NEEDED = {*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF0)}
"""Bytes without which no text can be written; SmolLM2 lacks a few others."""
_PROBE = "It's 42%:  a\n\n\tb 'é e\u0301 ﬁ 中文 ▁x\u00a0 😀\r\n\x07 "


class Vocabulary:
    """The tokens of one member as bytes, and text as its tokens.

    Control tokens (special tokens, and added tokens that look like markup or that the chat template
    writes) stand for no bytes and never come out of `encode`: text that spells one stays text.

    Attributes:
        tokenizer: The Hugging Face tokenizer, untouched.
        columns: Width of the model's logits.
        size: Ids from here on are padding.
        token_bytes: Bytes by id, `columns` of them; None for control tokens and padding.
        ids_of: Ids by bytes; the one that the tokenizer itself writes comes first.
        control_ids: The control tokens.
        controls: Their ids by spelling.
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
        self.lock = threading.Lock()
        self._steps = steps_around(backend)
        self.columns = columns or max(tokenizer.get_vocab().values()) + 1
        tokens = [backend.id_to_token(index) for index in range(self.columns)]
        used = (index for index, token in enumerate(tokens) if token is not None)
        self.size = max(used, default=-1) + 1
        self._added = added_tokens(backend)
        self.controls = self._find_controls()
        self.control_ids = frozenset(self.controls.values())
        self._marked = "ByteLevel" not in self._decoder_kinds()
        added = {index: token.content for index, token in self._added.items()}
        self.token_bytes = byte_table(tokens, added, self.control_ids, marked=self._marked)
        self.text_prefix = dummy_prefix(self._steps)
        self._plain = plain(backend, self.control_ids)
        self.ids_of = ids_by_bytes(self.token_bytes)
        self._put_written_first()
        self._check()
        eos = tokenizer.eos_token_id
        ends = dict.fromkeys([*([] if eos is None else [eos]), *end_ids])
        self.end_ids = tuple(index for index in ends if 0 <= index < self.columns)
        probe: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        first = next((i for i, t in enumerate(probe) if t not in self.control_ids), len(probe))
        self.prefix_ids = tuple(probe[:first])

    def _find_controls(self) -> dict[str, int]:
        """Added tokens that are not text, or that the model has no column for."""
        template = self.tokenizer.chat_template or ""
        if isinstance(template, dict):
            template = "".join(template.values())
        found: dict[str, int] = {}
        for index, token in self._added.items():
            written = bool(token.content.strip()) and token.content in template
            markup = written or _MARKUP.fullmatch(token.content)
            if token.special or markup or index >= self.columns:
                found[token.content] = index
        return found

    def _decoder_kinds(self) -> set[str]:
        found = kinds(self._steps["decoder"])
        if not found & {"ByteLevel", "ByteFallback", "Metaspace"}:
            raise TokenizerError(
                f"{self.tokenizer.name_or_path!r}: decoder {sorted(found)} does not map to bytes",
                hint="byte-level BPE and SentencePiece-style tokenizers are supported",
            )
        return found

    def _put_written_first(self) -> None:
        """Of several ids with the same bytes, the one that the tokenizer writes comes first."""
        several = [token for token, ids in self.ids_of.items() if len(ids) > 1]
        texts = [token.decode(errors="replace") for token in several]
        for token, written in zip(several, self.encode_batch(texts), strict=True):
            first = written[0] if len(written) == 1 else -1
            self.ids_of[token] = tuple(sorted(self.ids_of[token], key=lambda index: index != first))

    def _check(self) -> None:
        """Refuse a vocabulary in which some text cannot be written, or is written as another."""
        name = self.tokenizer.name_or_path
        hint = "byte-level and byte-fallback tokenizers are supported"
        missing = sorted(_NEEDED & self.missing)
        if missing:
            raise TokenizerError(f"{name!r} has no token for byte {missing[0]:#04x}", hint=hint)
        written = self.decode(self.encode(_PROBE))
        if written != _PROBE.encode():
            became = written.decode(errors="replace")
            raise TokenizerError(f"{name!r} turns {_PROBE!r} into {became!r}", hint=hint)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` as text, without anything before or after it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        rows: list[list[int]] = [encoding.ids for encoding in encodings]
        for index, text in enumerate(texts):
            if self._odd.search(text):
                rows[index] = self.encode_bytes(text.encode())
            elif not self.control_ids.isdisjoint(rows[index]):
                rows[index] = self._split_controls(text)
        return rows

    def _split_controls(self, text: str) -> list[int]:
        """Encode text in which a control token's spelling was recognized: cut the spelling."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        cuts = [
            start + 1
            for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if index in self.control_ids and end - start > 1
        ]
        if not cuts:
            return [index for index in encoding.ids if index not in self.control_ids]
        parts = [text[low:high] for low, high in pairwise([0, *cuts, len(text)])]
        return [index for ids in self.encode_batch(parts) for index in ids]

    def encode_bytes(self, data: bytes) -> list[int]:
        """`encode` for bytes that need not be valid UTF-8; stray bytes become byte tokens."""
        return self.encode_spans(data)[0]

    def encode_spans(self, data: bytes) -> tuple[list[int], list[int]]:
        """`encode_bytes`, and where each token ends in `data`.

        A byte that has no token (`missing`) is left out.
        """
        parts = self._odd.split(data.decode(errors="surrogateescape"))
        ids: list[int] = []
        ends: list[int] = []
        end = 0
        for text, odd in zip(parts[::2], [*parts[1::2], ""], strict=True):
            for index in self.encode(text) if text else ():
                end += len(self.token_bytes[index] or b"")
                ids.append(index)
                ends.append(end)
            for byte in odd.encode(errors="surrogateescape"):
                end += 1
                if byte not in self.missing:
                    ids.append(self.ids_of[bytes([byte])][0])
                    ends.append(end)
        return ids, ends

    @cached_property
    def missing(self) -> frozenset[int]:
        """Bytes that no token stands for."""
        return frozenset(byte for byte in range(256) if bytes([byte]) not in self.ids_of)

    @cached_property
    def _odd(self) -> re.Pattern[str]:
        """Characters that are written byte by byte: stray bytes, and what the tokenizer would lose.

        That is the mark that stands for a space, and characters with a byte that has no token.
        """
        odd = ["\udc80-\udcff", METASPACE if self._marked else ""]
        odd += [re.escape(chr(byte)) for byte in self.missing if byte < 0x80]
        leads = [byte for byte in self.missing if 0xF0 <= byte < 0xF5]
        for lead in leads:
            first = (lead - 0xF0) << 18
            odd.append(f"{chr(max(first, 0x10000))}-{chr(min(first + 0x3FFFF, 0x10FFFF))}")
        return re.compile(f"([{''.join(odd)}]+)")

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

    def spoken(self, ids: Iterable[int]) -> bytes:
        """`decode` for generated ids: marks of reasoning and calls are spelled, not dropped."""
        return b"".join(self.token_bytes[index] or self.marks.get(index, b"") for index in ids)

    @cached_property
    def marks(self) -> dict[int, bytes]:
        """Control tokens that say which part of an answer follows, as text."""
        return {self.controls[name]: name.encode() for name in MARKS if name in self.controls}

    def written(self, data: bytes) -> list[int]:
        """Ids as the model itself would write them: `encode_bytes`, with its tokens for marks."""
        if not self.marks:
            return self.encode_bytes(data)
        ids_of = {mark: index for index, mark in self.marks.items()}
        parts = re.split(b"(" + b"|".join(map(re.escape, ids_of)) + b")", data)
        return [
            index
            for part in parts
            for index in ([ids_of[part]] if part in ids_of else self.encode_bytes(part))
        ]

    def spell(self, index: int) -> str:
        """A token as people read it, control tokens included."""
        token = self.token_bytes[index] if index < self.columns else None
        if token is None:
            return str(self.tokenizer.convert_ids_to_tokens(index))
        return token.decode(errors="replace")

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes by id, `[columns]`; 0 for control tokens and padding."""
        return np.array([len(token) if token else 0 for token in self.token_bytes])

    @cached_property
    def sorted_bytes(self) -> list[bytes]:
        """The distinct tokens in byte order: what begins with one prefix is one range."""
        return sorted(self.ids_of)

    @cached_property
    def sorted_ids(self) -> Tensor:
        """The id of each of `sorted_bytes`, `[n]`."""
        first = (self.ids_of[token][0] for token in self.sorted_bytes)
        return torch.from_numpy(np.fromiter(first, np.int64, len(self.sorted_bytes)))

    @cached_property
    def _text_rules(self) -> str:
        """Digest of what turns text into tokens, but for the added ones."""
        steps = [self._steps[name] for name in ("normalizer", "pre_tokenizer")]
        return digest(steps, model_digest(self._plain))

    @cached_property
    def text_digest(self) -> str:
        """Equal for vocabularies in which every text has the same ids."""
        used = int(np.flatnonzero(self.lengths).max(initial=-1)) + 1
        found = hashlib.sha256(self._text_rules.encode())
        found.update(self.lengths[:used].tobytes())
        found.update(b"".join(filter(None, self.token_bytes)))
        return found.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides how text becomes tokens."""
        rules = [self._text_rules, self._steps["decoder"], added_digest(self._added)]
        return digest(FORMAT, rules, self.columns, sorted(self.control_ids), self.end_ids)

    def __repr__(self) -> str:
        """For people."""
        return f"Vocabulary({self.tokenizer.name_or_path!r}, {len(self.ids_of):,} byte strings)"
