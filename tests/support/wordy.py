"""Members that write words chosen by the text before them, for tests of nudging."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from packfuse import Pack
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico
from tests.support.scripted import CERTAIN, Scripted

UNSURE = 0.5
"""Logit of a leader's next token where it is unsure; all others have 0."""


class Writer:
    """A language model of whole texts: what it writes next is a function of the text alone.

    A word in progress is finished; after it comes a space and the next word. Some words end a line,
    some are in other scripts.
    """

    def __init__(self, words: Sequence[str], end_after: int = 0) -> None:
        """`end_after`: about one text of so many is ended; 0 for none."""
        self.words, self.end_after = words, end_after

    def rest(self, text: str) -> str:
        """What comes after a text, to the end of a word; nothing for its end."""
        begun, space, tail = text.rpartition(" ")
        word = self._word(begun)
        if space and word.startswith(tail) and word != tail:
            return word[len(tail) :]
        return "" if self._chance(text, self.end_after) else " " + self._word(text)

    def sure(self, text: str) -> bool:
        """Whether the next token is certain; in three of four texts."""
        return not self._chance("sure" + text, 4)

    def _word(self, text: str) -> str:
        return self.words[zlib.crc32(text.encode()) % len(self.words)]

    def _chance(self, text: str, one_in: int) -> bool:
        return bool(one_in) and zlib.crc32(b"?" + text.encode()) % one_in == 0


class Wordy(Scripted):
    """A model that writes what its writer does."""

    def __init__(self, vocabulary: Vocabulary, writer: Writer, *, leads: bool) -> None:
        super().__init__(vocabulary, str)
        self.writer, self.leads = writer, leads
        # Of two other tokens the shorter one is likelier, so that no long one is suspected.
        self.others = -8.0 * torch.tensor(vocabulary.lengths, dtype=torch.float32)

    def fill(self, logits: Tensor, prefix: list[int], text: bytes) -> None:
        text = text.lstrip(b" ")  # some tokenizers begin with a space
        logits += 0 if self.leads else self.others
        try:
            read = text.decode()
        except UnicodeDecodeError as error:
            # Inside a character: what it was writing before it goes on.
            begun = self.writer.rest(text[: error.start].decode()).encode()
            missing = begun[len(text) - error.start :]
            logits[self.vocabulary.encode_bytes(missing)[0] if missing else 0] = 2 * CERTAIN
            return
        rest = self.writer.rest(read)
        token = self.vocabulary.encode(rest)[0] if rest else self.vocabulary.end_ids[0]
        certain = 2 * CERTAIN if not self.leads or self.writer.sure(read) else UNSURE
        logits[token] = certain


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """A packaged tokenizer."""
    tokenizer = pico.real_tokenizer(name)
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))


def wordy_pack(leader: Writer, nudger: Writer, **settings: Any) -> Pack:
    """A pack of two such members with tokenizers of different kinds; the first leads."""
    members = [
        HFMember(name, Wordy(vocabulary(name), writer, leads=leads).eval(), vocabulary(name))
        for name, writer, leads in (("mistral", leader, True), ("deepseek", nudger, False))
    ]
    return Pack(members, progress=False, **{"gate": "nudge", **settings})
