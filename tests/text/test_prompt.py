"""A plain prompt in the tokens of every member."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from packfuse.text.prompt import from_text
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico
from tests.support.packs import tiny_member, tiny_pack

SPACES: dict[str, dict[str, Any]] = {
    "always": {"pre_tokenizer": {"prepend_scheme": "always"}},
    "first": {"pre_tokenizer": {"prepend_scheme": "first"}},
    "never": {"pre_tokenizer": {"prepend_scheme": "never"}},
    "prepended": {
        "pre_tokenizer": None,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
    },
}
"""How SentencePiece-style tokenizers put a space before a text."""


@functools.cache
def spaced(style: str) -> Vocabulary:
    """The tokenizer of Mistral 7B with another way to put a space before a text."""
    spec: dict[str, Any] = json.loads(pico.real_tokenizer("mistral").backend_tokenizer.to_str())
    assert spec["pre_tokenizer"]["type"] == "Metaspace"
    for part, change in SPACES[style].items():
        old = spec[part] if isinstance(spec[part], dict) and "type" not in (change or {}) else {}
        spec[part] = change and {**old, **change}
    backend = Tokenizer.from_str(json.dumps(spec))
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=style))


@pytest.mark.parametrize("style", SPACES)
@given(text=st.lists(st.sampled_from([" ", "  ", "word", "\n", "é", "1", "\t"])).map("".join))
@example(" leading")
@example("  doubled")
@example(" ")
def test_a_prompt_has_the_tokens_of_its_own_tokenizer(style: str, text: str) -> None:
    own = spaced(style)
    if not text:
        return
    prompt = from_text(text, [own], 0)
    assert list(prompt.stream) == [
        *own.prefix_ids,
        *own.tokenizer(text, add_special_tokens=False).input_ids,
    ]
    assert b"".join(prompt.texts) == (text.encode() if text.strip() else b"")


@pytest.mark.parametrize("text", ["leading", " leading", "  leading", " ", "  a  b"])
def test_members_read_the_text_that_was_written(text: str) -> None:
    members = [tiny_member(name) for name in ("deepseek", "mistral")]
    for reference in ("deepseek", "mistral"):
        pack = tiny_pack(members, reference=reference)
        record = pack.generate(text, max_new_tokens=1).record
        for member in members:
            own = member.vocabulary
            ids = [*own.prefix_ids, *own.tokenizer(text, add_special_tokens=False).input_ids]
            assert record.usage.prompt_tokens_by_member[member.name] == len(ids)
