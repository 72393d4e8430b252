"""The scored tokens are those of lm-eval's own HFLM, for real tokenizers and any text."""

from __future__ import annotations

import copy
import functools

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerFast

from packfuse.errors import ConfigError, PromptError
from packfuse.text.continuation import Continuation, bare
from packfuse.text.vocabulary import Vocabulary
from tests.support import packs, pico, small
from tests.support.fusing import bpe

pytestmark = pytest.mark.filterwarnings("ignore:.*")

NAMES = ("deepseek", "mistral", "long")
FRAGMENTS = (
    "he",
    "llo",
    " ",
    "  ",
    "\n\n",
    "\t",
    "12",
    "345",
    "中",
    "文字",
    "😀",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
)
SPELLED = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join)
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TEXTS = st.one_of(SPELLED, ANYTHING)

every_tokenizer = pytest.mark.parametrize("name", NAMES)


def vocabulary(name: str) -> Vocabulary:
    return small.vocabulary(name) if name in small.WORDS else packs.vocabulary(name)


@functools.cache
def harness(name: str) -> HFLM:
    """lm-eval's wrapper of a tiny model; only its tokenizer is used."""
    tokenizer = copy.deepcopy(vocabulary(name).tokenizer)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return HFLM(pretrained=pico.tiny_model(tokenizer), tokenizer=tokenizer, batch_size=1)


def same_text(name: str, context: str, text: str) -> bool:
    """Whether the tokenizer itself does not change the text.

    Some decode `▁` as a space, recognize control tokens in the text, or take its first space for
    their dummy space.
    """
    own = vocabulary(name)
    if own.text_prefix and context.startswith(" "):
        return False
    return "▁" not in context + text and not any(word in context + text for word in own.controls)


@every_tokenizer
@settings(max_examples=60)
@example("The capital of", " France")
@example("The capital of ", "France")
@example("The capital of \n\t ", " Fra\n")
@example("hel", "lo there")
@example("日", "本語")
@example("a", " ")
@example("😀", "😀 ")
@example("in", "ternational")
@given(TEXTS, TEXTS)
def test_tokens_are_those_of_lm_eval(name: str, context: str, text: str) -> None:
    assume(context.strip() and same_text(name, context, text))
    head, new = harness(name)._encode_pair(context, text)
    own = vocabulary(name)
    if not new:
        with pytest.raises(PromptError, match="adds no token"):
            Continuation.of(own, context, text)
        return
    found = Continuation.of(own, context, text)
    assert (list(found.head), list(found.new)) == (head, new)


@every_tokenizer
@settings(max_examples=60)
@example("hel", "lo there")
@example("in", "ternational")
@example("x ", "y")
@given(TEXTS, TEXTS)
def test_exact_tells_whether_the_bytes_are_those_of_the_text(
    name: str, context: str, text: str
) -> None:
    own = vocabulary(name)
    try:
        found = Continuation.of(own, context, text)
    except PromptError:
        return
    spelled = b"".join(own.token_bytes[token] or b"" for token in found.new)
    stripped = context.rstrip() or context
    assert found.exact == (spelled == (context + text)[len(stripped) :].encode())
    assert found.size == len(spelled)
    assert own.decode(found.head).endswith(stripped.encode())


def test_exact_is_true_or_false() -> None:
    """`hello` is one token, so the tokens scored for `lo` after `hel` do not spell `lo`."""
    own = bpe("hello")
    assert Continuation.of(own, "say ", "hello").exact
    merged = Continuation.of(own, "say hel", "lo!")
    # Five tokens are given, the last is `hel`. Of both together, the fifth is `hello`, then `!`.
    assert not merged.exact
    assert own.decode(merged.new) == b"!"


def test_a_context_of_white_space_alone_is_kept() -> None:
    own = bpe("hello")
    found = Continuation.of(own, "  ", "hello")
    assert own.decode(found.head) == b"  "
    assert own.decode(found.new) == b"hello"
    assert bare(" \n") == " \n"
    assert bare("a \n") == "a"


@every_tokenizer
def test_empty_context_or_text_is_refused(name: str) -> None:
    with pytest.raises(PromptError, match="prompt is empty"):
        Continuation.of(vocabulary(name), "", "text")
    with pytest.raises(ConfigError, match="continuation is empty"):
        Continuation.of(vocabulary(name), "text", "")


def test_a_text_that_merges_into_its_context_adds_no_token() -> None:
    own = bpe("hello")
    with pytest.raises(PromptError, match="'o' adds no token"):
        Continuation.of(own, "hell", "o")
