"""The tokens of a growing text do not depend on the steps in which it grew."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico

PAIRS = [("mistral", "deepseek"), ("deepseek", "mistral"), ("tekken", "deepseek")]
FRAGMENTS = (
    " the", "The", "\n", "\n\n", "    ", "  ", "\t", "if x:", " 12345", "3.14", "不", "客气", "é",
    "e\u0301", "😀", "👩\u200d👧", "▁", "'s", "...", "<s>", "</s>", "\r\n", "\x07", "\u00a0",
)  # fmt: skip
# Long text without a space: the tail is cut between characters.
LONG = (
    "哈",
    "哈哈",
    "你好",
    "中文字",
    "。",
    "，",
    "日本語",
    "の",
    "カタカナ",
    "😀",
    "👩\u200d👧",
    "\u0301",
    "é",
    "ก็",
    "7",
    "a",
)
# Words and numbers without white space: base64, paths, minified code.
PARTS = ("a", "ab", "tion", "ing", "The", "0", "12", "999", "_", "/", "==", "();", "'s", "\u00e9")
texts = st.one_of(
    st.lists(st.sampled_from(LONG), max_size=150).map("".join),
    st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join),
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.lists(st.sampled_from(PARTS), min_size=40, max_size=150).map("".join),
)


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(pico.real_tokenizer(name))


def fresh(name: str, text: bytes) -> tuple[list[int], list[int], bool]:
    tokens = IncrementalTokenizer(vocabulary(name))
    tokens.update(text)
    return tokens.ids, tokens.ends, tokens.whole


def boundaries(reference: str, text: str) -> list[int]:
    """Where the tokens of a reference end, in bytes: sometimes inside a character."""
    return vocabulary(reference).encode_spans(text.encode())[1]


@pytest.mark.parametrize(("member", "reference"), PAIRS)
@given(text=texts)
def test_growing_by_reference_tokens_equals_a_fresh_start(
    member: str, reference: str, text: str
) -> None:
    tokens, data = IncrementalTokenizer(vocabulary(member)), text.encode()
    for end in boundaries(reference, text):
        tokens.update(data[:end])
        assert (tokens.ids, tokens.ends, tokens.whole) == fresh(member, data[:end])


@pytest.mark.parametrize(("member", "reference"), PAIRS)
@given(text=texts, other=texts, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_shrinking_and_changing_equals_a_fresh_start(
    member: str, reference: str, text: str, other: str, cuts: list[int]
) -> None:
    tokens, data = IncrementalTokenizer(vocabulary(member)), text.encode()
    ends = [0, *boundaries(reference, text)]
    for cut in cuts:
        part = data[: ends[-cut % len(ends)]]
        for goal in (part, part + other.encode()):
            tokens.update(goal)
            assert (tokens.ids, tokens.ends, tokens.whole) == fresh(member, goal)


@pytest.mark.parametrize("member", pico.PACKAGED)
@given(text=texts, stray=st.binary(max_size=6))
def test_the_tokens_spell_the_text(member: str, text: str, stray: bytes) -> None:
    data = text.encode() + stray
    ids, ends, whole = fresh(member, data)
    spelled = vocabulary(member).decode(ids)
    assert data.startswith(spelled)
    assert (len(spelled) == len(data)) == whole
    assert len(data) - len(spelled) < 4
    assert ends == [len(vocabulary(member).decode(ids[: i + 1])) for i in range(len(ids))]


@pytest.mark.parametrize("member", pico.PACKAGED)
@given(text=texts.filter(lambda text: not text[-1:].isspace()))
def test_the_tokens_are_those_of_the_tokenizer(member: str, text: str) -> None:
    assert fresh(member, text.encode())[0] == vocabulary(member).encode(text)


@pytest.mark.parametrize("text", ["a\n\n", "x = 1\n", "if x:\r\n\r\n", "a\t"])
@pytest.mark.parametrize("member", pico.PACKAGED)
def test_trailing_white_space_is_tokenized_as_before_a_word(member: str, text: str) -> None:
    whole = vocabulary(member).encode(text + "word")
    word = vocabulary(member).encode("word")
    assert whole == fresh(member, text.encode())[0] + word


def test_an_incomplete_character_is_left_out() -> None:
    data = "a😀".encode()
    for end in (2, 3, 4):
        ids, ends, whole = fresh("mistral", data[:end])
        assert (ids, ends, whole) == (*fresh("mistral", b"a")[:2], False)
    assert fresh("mistral", data)[2]


def test_a_copy_is_independent() -> None:
    tokens = IncrementalTokenizer(vocabulary("mistral"))
    tokens.update(b"one two")
    twin = tokens.copy()
    twin.update(b"one two three")
    assert tokens.ids == fresh("mistral", b"one two")[0]
    assert twin.ids == fresh("mistral", b"one two three")[0]


@pytest.mark.parametrize("name", pico.PACKAGED)
@pytest.mark.parametrize("part", ["a", "ab12", "==", "7", "\u54c8", "x" * 50 + "\u00e9"])
def test_a_long_text_without_spaces_costs_little_for_each_new_character(
    name: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = vocabulary(name)
    data = (part * 3_000).encode()[:12_000].decode(errors="ignore").encode()
    tokens, encoded = IncrementalTokenizer(own), []
    tokens.update(data)
    whole = Vocabulary.encode_spans

    def counted(self: Vocabulary, text: bytes) -> tuple[list[int], list[int]]:
        encoded.append(len(text))
        return whole(self, text)

    monkeypatch.setattr(Vocabulary, "encode_spans", counted)
    for _ in range(20):
        data += part.encode()
        tokens.update(data)
    assert max(encoded) < 4_000
    monkeypatch.undo()
    assert (tokens.ids, tokens.ends, tokens.whole) == fresh(name, data)
