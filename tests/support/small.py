"""Small packs with byte-level vocabularies of a few hundred tokens, for fast tests."""

from __future__ import annotations

import functools
from typing import Any

from packfuse import Pack
from packfuse.models.hf_member import HFMember
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.scripted import TEMPLATE, Script, Scripted

WORDS = {"long": ("hello", "the ", "true", '": '), "short": ("he", "lo", '{"', "日本")}


@functools.cache
def vocabulary(name: str, *, pad: bool = False, template: str | None = None) -> Vocabulary:
    """A vocabulary with the words of that name; with `pad` it has a pad token of its own."""
    controls = ("<end>", "<pad>") if pad else ("<end>",)
    tokenizer = fusing.bpe(*WORDS[name], name=name, controls=controls).tokenizer
    tokenizer.pad_token = "<pad>" if pad else None
    tokenizer.chat_template = template
    return Vocabulary(tokenizer, pico.padded_size(tokenizer))  # type: ignore[arg-type]


def small_pack(
    *, pad: bool = False, template: str | None = None, context: int = 512, **settings: Any
) -> Pack:
    """Two random models with these vocabularies; the first is the reference."""
    members = []
    for seed, name in enumerate(WORDS):
        own = vocabulary(name, pad=pad, template=template)
        model = pico.tiny_model(own.tokenizer, seed=seed, context=context)  # type: ignore[arg-type]
        members.append(HFMember(name, model, own))
    return Pack(members, progress=False, **{"reference": "long", **settings})


def scripted_small(script: Script, *, template: str = TEMPLATE, **settings: Any) -> Pack:
    """Two scripted members with these vocabularies; the first is the reference."""
    members = []
    for name in WORDS:
        own = vocabulary(name, template=template)
        members.append(HFMember(name, Scripted(own, script).eval(), own))
    return Pack(
        members, progress=False, **{"reference": "long", "weighting": "uniform", **settings}
    )
