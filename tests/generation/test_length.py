"""One measure of length: a prompt that it admits is refused by no member."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies

from packfuse import Pack
from packfuse.errors import PromptError
from packfuse.models.hf_member import HFMember
from tests.support import packs, pico, small
from tests.support.scripted import TEMPLATE

WORDS = [
    "hello",
    "the ",
    " ",
    "\n",
    "日本語",
    "🎉",
    "naïve",
    "12345",
    "def f(x):",
    "ab",
    "\t",
    "Ω",
    "x" * 9,
]
TEXTS = strategies.lists(strategies.sampled_from(WORDS), min_size=1, max_size=40).map("".join)
SETTINGS: dict[str, dict[str, Any]] = {
    "equal windows": {"windows": (48, 48)},
    "one is larger": {"windows": (40, 300)},
    "the other is larger": {"windows": (300, 40)},
    "by itself": {"windows": (60, 60), "reference": "auto"},
    "fed ids": {"windows": (60, 60), "alignment": "mined"},
    "fed ids, by itself": {"windows": (60, 60), "alignment": "mined", "reference": "auto"},
}


@functools.cache
def pack(kind: str, *, real: bool = False) -> Pack:
    """Two tiny members with very different tokenizers."""
    arguments = {"prefix_cache": 0, **SETTINGS[kind]}
    members = []
    for name, window in zip(
        ("deepseek", "mistral") if real else ("long", "short"),
        arguments.pop("windows"),
        strict=True,
    ):
        own = packs.vocabulary(name) if real else small.vocabulary(name, template=TEMPLATE)
        tokenizer: Any = own.tokenizer
        members.append(HFMember(name, pico.tiny_model(tokenizer, context=window), own))
    return Pack(members, progress=False, **{"reference": members[0].name, **arguments})


def refused(own: Pack, prompt: Any) -> bool:
    try:
        own.generate(prompt, max_new_tokens=1, weighting="uniform")
    except PromptError as error:
        assert "which can read" in str(error)
        return True
    return False


@pytest.mark.parametrize("kind", SETTINGS)
@settings(max_examples=25)
@given(text=TEXTS)
@example(text="x" * 48)
@example(text="x" * 40)
@example(text="x" * 41 + " ")
def test_what_the_measure_admits_is_not_refused(kind: str, text: str) -> None:
    own = pack(kind)
    for prompt in (text, [{"role": "user", "content": f"a{text}"}]):
        admitted = own.count_tokens(prompt) <= own.context_window
        if admitted or SETTINGS[kind].get("reference") != "auto":
            assert refused(own, prompt) == (not admitted)


@settings(max_examples=15)
@given(text=TEXTS)
def test_with_tokenizers_of_real_models(text: str) -> None:
    own = pack("one is larger", real=True)
    admitted = own.count_tokens(text) <= own.context_window
    assert refused(own, text) == (not admitted)
    assert len(own.count_ids(text)) == own.count_tokens(text)


def test_the_member_with_the_least_room_counts() -> None:
    own = pack("one is larger")
    assert own.context_window == 40
    # "hello" is one token of 40 for the first member, and three of 300 for the second.
    assert (own.count_tokens("hello"), own.count_tokens("hello" * 40)) == (1, 40)
    assert pack("the other is larger").count_tokens("hello") == 3
    assert (own.count_tokens(""), own.count_ids("")) == (0, [])
