"""Tiny packs with real tokenizers, whose byte tables are computed once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from packfuse import Pack
from packfuse.models.hf_member import HFMember
from packfuse.models.member import Member
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    """The packaged tokenizer of that name, with as many columns as its tiny models."""
    tokenizer = pico.real_tokenizer(name)
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))


def tiny_member(name: str, arch: str = "llama", seed: int = 0) -> HFMember:
    """A tiny model with the name of its tokenizer."""
    return HFMember(name, pico.tiny_pair(name, arch, seed)[0], vocabulary(name))


def tiny_members(names: Sequence[str], seed: int = 0) -> list[HFMember]:
    """Tiny Llama models with different seeds."""
    return [tiny_member(name, seed=seed + k) for k, name in enumerate(names)]


def tiny_pack(members: Sequence[Member], **settings: Any) -> Pack:
    """A pack without a progress display."""
    return Pack(members, progress=False, **settings)
