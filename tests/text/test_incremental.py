"""A member's tokens of a growing text do not depend on how it grew."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packfuse.text.incremental import IncrementalTokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico

PAIRS = [("mistral", "deepseek"), ("deepseek", "mistral"), ("tekken", "deepseek")]
PIECES = (
    " the", "The", "\n", "\n\n", "    ", "  ", "\t", "if x:", " 12345", "3.14", "不", "客气", "é",
    "e\u0301", "😀", "👩\u200d👧", "▁", "'s", "...", "<s>", "</s>", "\r\n", "\x07", "\u00a0",
)  # fmt: skip
# Long runs without a space, in which the tail is cut between characters.
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
texts = st.one_of(
    st.lists(st.sampled_from(LONG), max_size=150).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.text(st.characters(codec="utf-8"), max_size=40),
)


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary(pico.real_tokenizer(name))


def fresh(name: str, text: bytes) -> tuple[list[int], list[int], bool]:
    path = IncrementalTokenizer(vocabulary(name))
    path.update(text)
    return path.ids, path.ends, path.whole


def boundaries(reference: str, text: str) -> list[int]:
    """Where the tokens of a reference end: not always between characters."""
    return vocabulary(reference).encode_spans(text.encode())[1]


@pytest.mark.parametrize(("member", "reference"), PAIRS)
@given(text=texts)
def test_growing_by_reference_tokens_equals_starting_anew(
    member: str, reference: str, text: str
) -> None:
    path, data = IncrementalTokenizer(vocabulary(member)), text.encode()
    for end in boundaries(reference, text):
        path.update(data[:end])
        assert (path.ids, path.ends, path.whole) == fresh(member, data[:end])


@pytest.mark.parametrize(("member", "reference"), PAIRS)
@given(text=texts, other=texts, cuts=st.lists(st.integers(0, 200), max_size=4))
def test_shrinking_and_changing_equals_starting_anew(
    member: str, reference: str, text: str, other: str, cuts: list[int]
) -> None:
    path, data = IncrementalTokenizer(vocabulary(member)), text.encode()
    ends = [0, *boundaries(reference, text)]
    for cut in cuts:
        part = data[: ends[-cut % len(ends)]]
        for goal in (part, part + other.encode()):
            path.update(goal)
            assert (path.ids, path.ends, path.whole) == fresh(member, goal)


@pytest.mark.parametrize("member", pico.PACKAGED)
@given(text=texts, stray=st.binary(max_size=6))
def test_the_path_spells_the_text(member: str, text: str, stray: bytes) -> None:
    data = text.encode() + stray
    ids, ends, whole = fresh(member, data)
    spelled = vocabulary(member).decode(ids)
    assert data.startswith(spelled)
    assert (len(spelled) == len(data)) == whole
    assert len(data) - len(spelled) < 4
    assert ends == [len(vocabulary(member).decode(ids[: i + 1])) for i in range(len(ids))]


@pytest.mark.parametrize("member", pico.PACKAGED)
@given(text=texts.filter(lambda text: not text[-1:].isspace()))
def test_the_path_is_what_the_tokenizer_writes(member: str, text: str) -> None:
    assert fresh(member, text.encode())[0] == vocabulary(member).encode(text)


@pytest.mark.parametrize("text", ["a\n\n", "x = 1\n", "if x:\r\n\r\n", "a\t"])
@pytest.mark.parametrize("member", pico.PACKAGED)
def test_white_space_at_the_end_is_written_as_before_a_word(member: str, text: str) -> None:
    whole = vocabulary(member).encode(text + "word")
    word = vocabulary(member).encode("word")
    assert whole == fresh(member, text.encode())[0] + word


def test_half_a_character_waits() -> None:
    data = "a😀".encode()
    for end in (2, 3, 4):
        ids, ends, whole = fresh("mistral", data[:end])
        assert (ids, ends, whole) == (*fresh("mistral", b"a")[:2], False)
    assert fresh("mistral", data)[2]


def test_a_copy_is_independent() -> None:
    path = IncrementalTokenizer(vocabulary("mistral"))
    path.update(b"one two")
    twin = path.copy()
    twin.update(b"one two three")
    assert path.ids == fresh("mistral", b"one two")[0]
    assert twin.ids == fresh("mistral", b"one two three")[0]
