"""The byte table of a whole tokenizer equals the one computed token by token, or from JSON."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from packfuse.text.byte_table import byte_table, ids_by_bytes
from packfuse.text.tokenizer_json import METASPACE, text_tokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support import bytelevel

ALPHABET = {char: byte for byte, char in bytes_to_unicode().items()}
SENTENCEPIECE = st.one_of(
    st.text(st.sampled_from(f"{METASPACE}aé中<0x>"), max_size=5),
    st.from_regex(r"<0x[0-9a-fA-FgG+_]{2}>", fullmatch=True),
)
BYTE_LEVEL = st.text(st.sampled_from([*ALPHABET, *"中 \n"]), max_size=5)
SPELLED = ("<s>", "</s>", "[INST]", "<｜User｜>", "<bos>", "<|im_start|>", "<unused7>", "<0x0A>")
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8")),
    st.lists(st.sampled_from([*SPELLED, METASPACE, " ", "\n\n", "é", "a"]), max_size=9).map(
        "".join
    ),
)
# One tokenizer serves all examples of a test.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def slow_bytes(token: str, *, added: bool, metaspace: bool) -> bytes | None:
    """The bytes of one token, by definition; None for an empty token."""
    if metaspace:
        byte = re.fullmatch("<0x([0-9a-fA-F]{2})>", token)
        return bytes([int(byte[1], 16)]) if byte else token.replace(METASPACE, " ").encode() or None
    if added:
        return token.encode() or None
    known = set(token) <= set(ALPHABET)
    return (bytes(ALPHABET[char] for char in token) if known else None) or None


def slow_ids(table: Sequence[bytes | None]) -> dict[bytes, tuple[int, ...]]:
    """`ids_by_bytes`, by definition."""
    found: dict[bytes, list[int]] = {}
    for index, token in enumerate(table):
        if token is not None:
            found.setdefault(token, []).append(index)
    return {token: tuple(ids) for token, ids in found.items()}


def spec(backend: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json."""
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


@functools.cache
def text_only(tokenizer: PreTrainedTokenizerFast) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer for text only, and a copy of it from JSON, which shares no object with it."""
    vocabulary = Vocabulary(tokenizer)
    fast = text_tokenizer(tokenizer.backend_tokenizer, vocabulary.control_ids)
    slow = Tokenizer.from_str(fast.to_str())
    slow.encode_special_tokens = True
    return fast, slow


def test_tables_of_real_tokenizers(any_tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary(any_tokenizer)
    metaspace = "ByteLevel" not in json.dumps(spec(any_tokenizer.backend_tokenizer)["decoder"])
    added = any_tokenizer.added_tokens_decoder
    ids = any_tokenizer.get_vocab()
    assert vocabulary.columns == vocabulary.size == max(ids.values()) + 1
    table: list[bytes | None] = [None] * vocabulary.columns
    for token, index in ids.items():
        if index not in vocabulary.control_ids:
            table[index] = slow_bytes(token, added=index in added, metaspace=metaspace)
    assert vocabulary.token_bytes == table
    several = slow_ids(table)
    assert list(vocabulary.ids_of) == list(several)
    assert {token: tuple(sorted(found)) for token, found in vocabulary.ids_of.items()} == several
    for text, found in several.items():
        if len(found) > 1:
            written = vocabulary.encode(text.decode(errors="replace"))
            first = [index for index in found if [index] == written]
            others = [index for index in found if [index] != written]
            assert vocabulary.ids_of[text] == (*first, *others)


@given(
    tokens=st.lists(st.none() | SENTENCEPIECE | BYTE_LEVEL, max_size=12),
    added=st.sets(st.integers(0, 14)),
    controls=st.sets(st.integers(0, 14), max_size=4),
    metaspace=st.booleans(),
)
def test_tables_of_odd_tokens(
    tokens: list[str | None], added: set[int], controls: set[int], metaspace: bool
) -> None:
    spelled = {index: tokens[index] or "" for index in added if index < len(tokens)}
    expected = [
        None
        if index in controls or token is None
        else slow_bytes(token, added=index in added, metaspace=metaspace)
        for index, token in enumerate(tokens)
    ]
    beyond = {**spelled, len(tokens): "beyond"}
    assert byte_table(tokens, beyond, controls, metaspace=metaspace) == expected


@given(table=st.lists(st.none() | st.sampled_from([b"a", b"b", b"\xff", b"ab", b" "])))
def test_ids_by_bytes(table: list[bytes | None]) -> None:
    found = ids_by_bytes(table)
    assert list(found.items()) == list(slow_ids(table).items())


def test_the_tokenizer_for_text_keeps_the_model_and_the_tokens(
    any_tokenizer: PreTrainedTokenizerFast,
) -> None:
    controls = Vocabulary(any_tokenizer).control_ids
    before = spec(any_tokenizer.backend_tokenizer)
    made = spec(text_tokenizer(any_tokenizer.backend_tokenizer, controls))
    assert made["model"] == before["model"]
    assert made["added_tokens"] == [
        {**token, "special": token["id"] in controls, "lstrip": False, "rstrip": False}
        for token in before["added_tokens"]
    ]
    assert made["post_processor"] is made["truncation"] is made["padding"] is None
    assert spec(any_tokenizer.backend_tokenizer) == before


@shared
@given(text=TEXTS)
def test_a_shared_model_encodes_like_its_own_copy(
    any_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    fast, slow = (made.encode(text, add_special_tokens=False) for made in text_only(any_tokenizer))
    assert fast.ids == slow.ids
    assert fast.offsets == slow.offsets


def test_later_changes_to_the_tokenizer_have_no_effect() -> None:
    tokenizer = bytelevel.byte_tokenizer(400)
    vocabulary, twin = Vocabulary(tokenizer), Vocabulary(copy.deepcopy(tokenizer))
    tokenizer.add_tokens(["capital of France"])
    tokenizer.backend_tokenizer.pre_tokenizer = None
    text = "the capital of France"
    assert tokenizer(text).input_ids != vocabulary.encode(text) == twin.encode(text)
    assert vocabulary.fingerprint == twin.fingerprint
    assert vocabulary.text_digest == twin.text_digest


def test_every_part_of_a_tokenizer_changes_the_fingerprint() -> None:
    content = spec(bytelevel.byte_tokenizer(400).backend_tokenizer)
    merges = content["model"]["merges"]
    end = content["added_tokens"][0]
    changes: list[dict[str, Any]] = [
        {"model": {**content["model"], "merges": [*merges[:-2], merges[-1], merges[-2]]}},
        {"model": {**content["model"], "dropout": 0.5}},
        {"pre_tokenizer": {**content["pre_tokenizer"], "use_regex": False}},
        {"normalizer": {"type": "NFC"}},
        {"added_tokens": [{**end, "single_word": True}, *content["added_tokens"][1:]]},
        {"decoder": {**content["decoder"], "trim_offsets": False}},
    ]
    found = [_changed({**content, **change}) for change in ({}, *changes)]
    assert _changed(content).fingerprint == found[0].fingerprint
    assert len({vocabulary.fingerprint for vocabulary in found}) == len(found)
    # The last three changes affect what is not bytes for bytes, control tokens and decoding: a
    # vocabulary encodes text without them.
    assert len({vocabulary.text_digest for vocabulary in found}) == len(found) - 3
    assert found[4].encode("e\u0301") == found[0].encode("e\u0301")


def _changed(content: dict[str, Any]) -> Vocabulary:
    backend = Tokenizer.from_str(json.dumps(content))
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_added_text_and_holes() -> None:
    tokenizer = bytelevel.byte_tokenizer(400)
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken("mot à mot"), AddedToken("中", single_word=True)])
    wide = Vocabulary(tokenizer, size + 9)
    assert wide.token_bytes[size:] == ["mot à mot".encode(), "中".encode(), *[None] * 7]
    assert (wide.size, wide.columns) == (size + 2, size + 9)
    assert Vocabulary(tokenizer, size + 1).token_bytes == wide.token_bytes[: size + 1]
