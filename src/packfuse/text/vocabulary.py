"""A tokenizer as bytes: what each token stands for, and how text becomes token ids."""

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
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from packfuse.errors import TokenizerError
from packfuse.process import on_fork
from packfuse.text.byte_table import NEEDED, PROBE, byte_table, ids_by_bytes
from packfuse.text.marks import MARKUP, find_marks, role_ids
from packfuse.text.reply_tags import (
    HARMONY,
    HARMONY_ENDS,
    Reasoning,
    reasoning_marks,
    speaks_harmony,
)
from packfuse.text.tokenizer_json import (
    METASPACE,
    added_digest,
    added_tokens,
    always_prepends,
    component_types,
    digest,
    dummy_prefix,
    fast_backend,
    pipeline,
    rules_digest,
    text_tokenizer,
)

FORMAT = 4
"""Version of the byte table; part of every fingerprint."""

ANSWER_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tags that belong to an answer's text; some vocabularies have a control token for each."""


class Vocabulary:
    r"""The tokenizer of one member, with the bytes of every token.

    Control tokens are special tokens, and added tokens that look like markup or that the chat
    template contains. They have no bytes, and `encode` never returns one: text that spells a
    control token is encoded as text.

    Attributes:
        tokenizer: The Hugging Face tokenizer, unchanged.
        columns: Width of the model's logits, in tokens.
        size: The last id in use plus one; ids from `size` to `columns` are padding.
        token_bytes: Bytes by id, `[columns]`; None for control tokens and padding.
        ids_of: Ids by bytes. Of several ids with the same bytes, the one that the tokenizer itself
            produces comes first.
        control_ids: Ids of the control tokens.
        controls: The same ids by spelling.
        end_ids: Ids that end a turn or a text.
        prefix_ids: Ids that the tokenizer puts before a text (beginning of sequence).
        text_prefix: Bytes that the tokenizer puts before a text (the dummy space of Llama 2); see
            `prefix_of`.

    Example:
        >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        >>> backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
        >>> backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        >>> backend.decoder = decoders.ByteLevel()
        >>> vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
        >>> vocabulary.columns, vocabulary.decode(vocabulary.encode("hé"))
        (256, b'h\xc3\xa9')
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: int | None = None,
        end_ids: Iterable[int] = (),
    ) -> None:
        """Build the byte table of a fast tokenizer.

        Args:
            tokenizer: A tokenizer with a fast backend.
            columns: Width of the model's logits; None for the tokenizer's last id plus one.
            end_ids: Further ids that end a text, besides the tokenizer's own. Ids outside the
                vocabulary are ignored.

        Raises:
            TokenizerError: for a tokenizer without a fast backend, or one whose tokens cannot be
                mapped to bytes.
        """
        backend = fast_backend(tokenizer, columns)
        self.tokenizer = tokenizer
        self._renew_lock()
        on_fork(self._renew_lock)
        self._pipeline = pipeline(backend)
        self.columns = columns or max(tokenizer.get_vocab().values()) + 1
        tokens = [backend.id_to_token(index) for index in range(self.columns)]
        used = (index for index, token in enumerate(tokens) if token is not None)
        self.size = max(used, default=-1) + 1
        self._added = added_tokens(backend)
        self.controls = self._find_controls()
        self.control_ids = frozenset(self.controls.values())
        self._metaspace = "ByteLevel" not in self._decoder_types()
        added = {index: token.content for index, token in self._added.items()}
        self.token_bytes = byte_table(tokens, added, self.control_ids, metaspace=self._metaspace)
        self.text_prefix = dummy_prefix(self._pipeline)
        self._always_prepends = always_prepends(self._pipeline)
        self._text_tokenizer = text_tokenizer(backend, self.control_ids)
        self.ids_of = ids_by_bytes(self.token_bytes)
        self._put_produced_first()
        self._check_coverage()
        self.end_ids = self._find_ends(end_ids)
        self.prefix_ids = self._find_prefix()

    def _renew_lock(self) -> None:
        """In a forked child nobody would release a lock that another thread held."""
        self.lock = threading.Lock()

    def _find_controls(self) -> dict[str, int]:
        """Added tokens that are not text, or whose id is outside the model's logits."""
        template = self._template
        found: dict[str, int] = {}
        for index, token in self._added.items():
            in_template = bool(token.content.strip()) and token.content in template
            markup = in_template or MARKUP.fullmatch(token.content)
            if token.special or markup or index >= self.columns:
                found[token.content] = index
        return found

    def _find_ends(self, more: Iterable[int]) -> tuple[int, ...]:
        eos = self.tokenizer.eos_token_id
        turns = [self.controls[name] for name in HARMONY_ENDS] if self.speaks_harmony else []
        ends = dict.fromkeys([*([] if eos is None else [eos]), *more, *turns])
        return tuple(index for index in ends if 0 <= index < self.columns)

    def _find_prefix(self) -> tuple[int, ...]:
        """The control tokens that the tokenizer puts before a short text."""
        ids: list[int] = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        first = next((i for i, t in enumerate(ids) if t not in self.control_ids), len(ids))
        return tuple(ids[:first])

    def _decoder_types(self) -> set[str]:
        found = component_types(self._pipeline["decoder"])
        if not found & {"ByteLevel", "ByteFallback", "Metaspace"}:
            raise TokenizerError(
                f"{self.tokenizer.name_or_path!r}: decoder {sorted(found)} does not map to bytes",
                hint="byte-level BPE and SentencePiece-style tokenizers are supported",
            )
        return found

    def _put_produced_first(self) -> None:
        """Order ids with the same bytes: the id that the tokenizer itself produces comes first."""
        several = [token for token, ids in self.ids_of.items() if len(ids) > 1]
        texts = [token.decode(errors="replace") for token in several]
        for token, encoded in zip(several, self.encode_batch(texts), strict=True):
            first = encoded[0] if len(encoded) == 1 else -1
            self.ids_of[token] = tuple(sorted(self.ids_of[token], key=lambda index: index != first))

    def _check_coverage(self) -> None:
        """Refuse a vocabulary that cannot encode some text, or that changes text."""
        name = self.tokenizer.name_or_path
        hint = "byte-level and byte-fallback tokenizers are supported"
        missing = sorted(NEEDED & self.missing)
        if missing:
            raise TokenizerError(f"{name!r} has no token for byte {missing[0]:#04x}", hint=hint)
        decoded = self.decode(self.encode(PROBE))
        if decoded != PROBE.encode():
            became = decoded.decode(errors="replace")
            raise TokenizerError(f"{name!r} turns {PROBE!r} into {became!r}", hint=hint)

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without `prefix_ids` and without control tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, by text."""
        encodings = self._text_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows: list[list[int]] = [encoding.ids for encoding in encodings]
        for index, text in enumerate(texts):
            if self._bytewise.search(text):
                rows[index] = self.encode_bytes(text.encode())
            elif not self.control_ids.isdisjoint(rows[index]):
                rows[index] = self._split_controls(text)
        return rows

    def prefix_of(self, text: bytes) -> bytes:
        """Bytes that the tokenizer puts before this text: mostly none before a space."""
        spaced = text.startswith(b" ") and not self._always_prepends
        return b"" if spaced else self.text_prefix

    def encode_template(self, text: str, *, first: bool = True) -> list[int]:
        """The ids of a part of a rendered chat, in which spelled control tokens are meant.

        Args:
            text: The part.
            first: Whether the chat begins with it. Elsewhere nothing is put before it.
        """
        # Fast tokenizers change their settings while they encode, so threads take turns.
        with self.lock:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            if first:
                return ids
            # A line break has tokens of its own that do not depend on what follows.
            line = self.tokenizer.encode("\n", add_special_tokens=False)
            after: list[int] = self.tokenizer.encode("\n" + text, add_special_tokens=False)
        return after[len(line) :] if after[: len(line)] == line else ids

    @cached_property
    def is_bpe(self) -> bool:
        """Whether tokens are found by merging pairs (BPE)."""
        return isinstance(self._text_tokenizer.model, BPE)

    @cached_property
    def name(self) -> str:
        """Name of the tokenizer, for notes and errors."""
        return str(self.tokenizer.name_or_path).rstrip("/").split("/")[-1]

    def _split_controls(self, text: str) -> list[int]:
        """Encode text in which the backend matched a control token: split inside its spelling."""
        encoding = self._text_tokenizer.encode(text, add_special_tokens=False)
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
        """`encode` for bytes that need not be valid UTF-8; invalid bytes become byte tokens."""
        return self.encode_spans(data)[0]

    def encode_spans(self, data: bytes) -> tuple[list[int], list[int]]:
        """`encode_bytes`, and where each token ends.

        Bytes without a token (`missing`) are left out.

        Returns:
            Token ids, and the offset in `data` at which each token ends, in bytes.
        """
        parts = self._bytewise.split(data.decode(errors="surrogateescape"))
        ids: list[int] = []
        ends: list[int] = []
        end = 0
        for text, bytewise in zip(parts[::2], [*parts[1::2], ""], strict=True):
            for index in self.encode(text) if text else ():
                end += len(self.token_bytes[index] or b"")
                ids.append(index)
                ends.append(end)
            for byte in bytewise.encode(errors="surrogateescape"):
                end += 1
                if byte not in self.missing:
                    ids.append(self.ids_of[bytes([byte])][0])
                    ends.append(end)
        return ids, ends

    @cached_property
    def missing(self) -> frozenset[int]:
        """Bytes that have no token."""
        return frozenset(byte for byte in range(256) if bytes([byte]) not in self.ids_of)

    @cached_property
    def _bytewise(self) -> re.Pattern[str]:
        """Runs of characters that are encoded byte by byte.

        These are bytes that are not UTF-8, the character `▁` where it means a space, and characters
        with a byte that has no token.
        """
        ranges = ["\udc80-\udcff", METASPACE if self._metaspace else ""]
        ranges += [re.escape(chr(byte)) for byte in self.missing if byte < 0x80]
        for lead_byte in (byte for byte in self.missing if 0xF0 <= byte < 0xF5):
            first = (lead_byte - 0xF0) << 18
            ranges.append(f"{chr(max(first, 0x10000))}-{chr(min(first + 0x3FFFF, 0x10FFFF))}")
        return re.compile(f"([{''.join(ranges)}]+)")

    def first_token(self, data: bytes) -> int | None:
        """The first token id of the encoding of `data`, which may end inside a character.

        Returns:
            The id; None where no token fits.
        """
        try:
            ids = self.encode(data.decode())
        except UnicodeDecodeError:
            for length in range(len(data), 0, -1):
                if data[:length] in self.ids_of:
                    return self.ids_of[data[:length]][0]
            return None
        return ids[0] if ids else None

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; control tokens have none."""
        return b"".join(self.token_bytes[index] or b"" for index in ids)

    def decode_answer(self, ids: Iterable[int]) -> bytes:
        """`decode` for generated ids: the tags in `answer_tags` are spelled, not dropped."""
        return b"".join(
            self.token_bytes[index] or self.answer_tags.get(index, b"") for index in ids
        )

    @cached_property
    def answer_tags(self) -> dict[int, bytes]:
        """The spelling of each control token that belongs to the text of a reply, by id.

        These are `ANSWER_TAGS`, the marks of reasoning, and the marks of harmony.
        """
        marks = [mark for pair in self.reasoning_marks for mark in pair]
        names = dict.fromkeys([*ANSWER_TAGS, *marks, *(HARMONY if self.speaks_harmony else ())])
        found = {self.controls[name]: name.encode() for name in names if name in self.controls}
        return {i: name for i, name in found.items() if i not in self.end_ids and i < self.columns}

    @cached_property
    def marks(self) -> dict[int, bytes]:
        """The spelling of control tokens that belong to an answer, such as `<think>`, by id."""
        roles = {*self.end_ids, *self.prefix_ids, *role_ids(self.tokenizer)}
        return find_marks(self.controls, self.columns, roles, self.answer_tags, self._template)

    @cached_property
    def reasoning_marks(self) -> tuple[Reasoning, ...]:
        """What stands around the reasoning in replies of the model."""
        return reasoning_marks(self._template, self.controls)

    @cached_property
    def speaks_harmony(self) -> bool:
        """Whether replies of the model are in the format of gpt-oss."""
        return speaks_harmony(self.controls)

    @property
    def _template(self) -> str:
        """The chat template, or all of them; empty without any."""
        template = self.tokenizer.chat_template or ""
        return "".join(template.values()) if isinstance(template, dict) else str(template)

    def encode_answer(self, data: bytes) -> list[int]:
        """`encode_bytes` as a model generates: each of `answer_tags` becomes its control token."""
        if not self.answer_tags:
            return self.encode_bytes(data)
        ids_of = {tag: index for index, tag in self.answer_tags.items()}
        parts = re.split(b"(" + b"|".join(map(re.escape, ids_of)) + b")", data)
        return [
            index
            for part in parts
            for index in ([ids_of[part]] if part in ids_of else self.encode_bytes(part))
        ]

    def spell(self, index: int) -> str:
        """One token as readable text; control tokens are spelled, too."""
        token = self.token_bytes[index] if index < self.columns else None
        if token is None:
            return str(self.tokenizer.convert_ids_to_tokens(index))
        return token.decode(errors="replace")

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of bytes by id, `[columns]`; 0 for control tokens and padding."""
        return np.array([len(token) if token else 0 for token in self.token_bytes])

    @cached_property
    def sorted_bytes(self) -> list[bytes]:
        """The keys of `ids_of`, sorted: all that begin with one prefix are one slice."""
        return sorted(self.ids_of)

    @cached_property
    def sorted_ids(self) -> Tensor:
        """The first id of each of `sorted_bytes`, `[n]`."""
        first = (self.ids_of[token][0] for token in self.sorted_bytes)
        return torch.from_numpy(np.fromiter(first, np.int64, len(self.sorted_bytes)))

    @cached_property
    def text_digest(self) -> str:
        """Digest: equal for two vocabularies in which every text has the same token ids."""
        used = int(np.flatnonzero(self.lengths).max(initial=-1)) + 1
        added = {i: token for i, token in self._added.items() if i not in self.control_ids}
        found = hashlib.sha256(rules_digest(self._text_tokenizer, added).encode())
        found.update(self.lengths[:used].tobytes())
        found.update(b"".join(filter(None, self.token_bytes)))
        return found.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides how text and tokens are converted."""
        rules = [self.text_digest, self._pipeline, added_digest(self._added), sorted(self.marks)]
        return digest(FORMAT, rules, self.columns, sorted(self.control_ids), self.end_ids)

    def __repr__(self) -> str:
        return f"Vocabulary({self.tokenizer.name_or_path!r}, {len(self.ids_of):,} byte strings)"
