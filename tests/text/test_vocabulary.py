"""Every token has its bytes, text is encoded as text, and no byte is lost."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from packfuse.errors import TokenizerError
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico

CHARACTERS = st.characters(codec="utf-8")
SPELLED = (
    "<s>",
    "</s>",
    "<unk>",
    "[INST]",
    "<pad>",
    "<｜User｜>",
    "<｜end▁of▁sentence｜>",
    "<0x0A>",
)
FRAGMENTS = (
    *SPELLED,
    "▁",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "1",
    "42",
    "word",
    " word",
    "é",
    "你好",
    "😀",
)
TEXTS = st.one_of(
    st.text(CHARACTERS), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
)
every_name = pytest.mark.parametrize("name", pico.PACKAGED)
# One tokenizer serves all examples of a test.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@functools.cache
def read(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(tokenizer)


def small() -> PreTrainedTokenizerFast:
    """A tokenizer of its own for a test that changes it."""
    tokenizer = fusing.bpe("the ", "word").tokenizer
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@shared
@given(text=TEXTS)
def test_bytes_of_the_tokens_are_the_text(
    any_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    vocabulary = read(any_tokenizer)
    ids, ends = vocabulary.encode_spans(text.encode())
    kept = bytes(byte for byte in text.encode() if byte not in vocabulary.missing)
    assert vocabulary.decode(ids) == kept
    assert vocabulary.encode(text) == ids
    assert vocabulary.control_ids.isdisjoint(ids)
    for index, end in zip(ids, ends, strict=True):
        token = vocabulary.token_bytes[index]
        assert token is not None
        assert text.encode()[:end].endswith(token)


@shared
@given(data=st.binary(max_size=40))
def test_any_bytes_can_be_encoded(any_tokenizer: PreTrainedTokenizerFast, data: bytes) -> None:
    vocabulary = read(any_tokenizer)
    kept = bytes(byte for byte in data if byte not in vocabulary.missing)
    assert vocabulary.decode(vocabulary.encode_bytes(data)) == kept


def test_only_rare_bytes_may_be_missing(
    any_tokenizer: PreTrainedTokenizerFast,
) -> None:
    missing = read(any_tokenizer).missing
    assert missing <= {*range(9), 11, 12, *range(14, 32), 127, 0xC0, 0xC1, *range(0xF0, 0x100)}


@shared
@given(text=TEXTS)
def test_text_is_encoded_as_by_the_tokenizer_itself(
    any_tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    vocabulary = read(any_tokenizer)
    own = any_tokenizer(text, add_special_tokens=False).input_ids
    whole = vocabulary.prefix_of(text.encode()) + text.encode()
    if vocabulary.decode(own) == whole:
        assert vocabulary.encode_bytes(whole) == own


def test_spelled_control_tokens_stay_text(any_tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = read(any_tokenizer)
    texts = [f"say {token}{token}, please" for token in (*vocabulary.controls, *SPELLED)]
    for text, ids in zip(texts, vocabulary.encode_batch(texts), strict=True):
        assert vocabulary.control_ids.isdisjoint(ids)
        assert vocabulary.decode(ids) == text.encode()


def test_one_tokenizers_controls_stay_text_in_the_others() -> None:
    vocabularies = [fusing.vocabulary(name) for name in pico.PACKAGED]
    names = {token for vocabulary in vocabularies for token in vocabulary.controls}
    for vocabulary in vocabularies:
        for token, ids in zip(names, vocabulary.encode_batch(list(names)), strict=True):
            assert vocabulary.control_ids.isdisjoint(ids)
            assert vocabulary.decode(ids) == token.encode()


@every_name
def test_every_token_is_found_by_its_bytes(name: str) -> None:
    vocabulary = fusing.vocabulary(name)
    for index, token in enumerate(vocabulary.token_bytes):
        if token is not None:
            assert index in vocabulary.ids_of[token]
    assert set(vocabulary.sorted_bytes) == set(vocabulary.ids_of)
    assert vocabulary.lengths.tolist() == [len(token or b"") for token in vocabulary.token_bytes]


def test_of_several_ids_the_one_that_is_produced_comes_first() -> None:
    vocabulary = fusing.vocabulary("mistral")
    names = vocabulary.tokenizer.convert_ids_to_tokens
    assert names(list(vocabulary.ids_of[b"1"])) == ["1", "<0x31>"]
    assert names(list(vocabulary.ids_of[b" "])) == ["▁", "<0x20>"]
    # The byte token is the only newline of this vocabulary.
    assert names(list(vocabulary.ids_of[b"\n"])) == ["<0x0A>"]
    several = {token: ids for token, ids in vocabulary.ids_of.items() if len(ids) > 1}
    assert len(several) > 50
    for token, ids in several.items():
        assert vocabulary.encode(token.decode()) == [ids[0]]


@pytest.mark.starter
def test_the_newline_of_gemma_is_not_its_byte(starter_folders: dict[str, Path]) -> None:
    vocabulary = read(pico.folder_tokenizer(starter_folders["gemma-3-270m"]))
    names = vocabulary.tokenizer.convert_ids_to_tokens(list(vocabulary.ids_of[b"\n"]))
    assert names == ["\n", "<0x0A>"]


@every_name
def test_padding_columns_have_no_bytes(name: str) -> None:
    vocabulary = fusing.vocabulary(name)
    size = len(vocabulary.tokenizer)
    assert vocabulary.size == size < vocabulary.columns == len(vocabulary.token_bytes)
    assert set(vocabulary.token_bytes[size:]) == {None}


def test_columns_that_the_model_lacks_are_never_written() -> None:
    tokenizer = copy.deepcopy(pico.real_tokenizer("mistral"))
    tokenizer.add_tokens(["wordlet"])
    assert tokenizer("a wordlet").input_ids[-1] == 32_000
    narrow = Vocabulary(tokenizer, 32_000)
    assert len(narrow.token_bytes) == 32_000
    assert narrow.decode(narrow.encode("a wordlet")) == b"a wordlet"
    assert max(narrow.encode("a wordlet")) < 32_000
    assert Vocabulary(tokenizer, 32_001).encode("wordlet") == [32_000]


@pytest.mark.parametrize(
    ("name", "prefix", "dummy", "end"),
    [("deepseek", [], b"", "<｜end▁of▁sentence｜>"), ("mistral", ["<s>"], b" ", "</s>")],
)
def test_what_comes_before_and_after_a_text(
    name: str, prefix: list[str], dummy: bytes, end: str
) -> None:
    vocabulary = fusing.vocabulary(name)
    names = vocabulary.tokenizer.convert_ids_to_tokens
    assert names(list(vocabulary.prefix_ids)) == prefix
    assert vocabulary.text_prefix == dummy
    assert names(list(vocabulary.end_ids)) == [end]


def test_end_ids_outside_the_vocabulary_are_left_out() -> None:
    tokenizer = small()
    end = tokenizer.eos_token_id
    assert Vocabulary(tokenizer, end_ids=[end, 1, 99_999, -1]).end_ids == (end, 1)


def test_a_tokenizer_without_fast_backend_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"ByT5Tokenizer has no fast backend.*tokenizer\.json"):
        Vocabulary(ByT5Tokenizer())


def test_a_tokenizer_of_words_is_refused() -> None:
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match=r"WordPiece.* does not map to bytes"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_vocabulary_without_all_bytes_is_refused() -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    with pytest.raises(TokenizerError, match="no token for byte 0x09"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_tokenizer_that_drops_white_space_is_refused() -> None:
    backend = Tokenizer.from_str(small().backend_tokenizer.to_str())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), byte_level])
    with pytest.raises(TokenizerError, match=r"turns .* into"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_text_that_a_tokenizer_rewrites_is_kept() -> None:
    """Normalizers that change the text (lower case, NFC) are not applied."""
    backend = Tokenizer.from_str(small().backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    vocabulary = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))
    text = "Cafe\u0301 À LA CARTE"
    assert vocabulary.decode(vocabulary.encode(text)) == text.encode()


def test_control_tokens_keep_the_other_ids_as_they_are() -> None:
    """Markup that is not flagged as special is encoded as text; the tokens after it keep ids."""
    tokenizer = small()
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken("<|tool|>"), AddedToken("wordlet"), AddedToken("<|x|>")])
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.controls["<|tool|>"] == size
    assert vocabulary.encode("wordlet") == [size + 1]
    ids = vocabulary.encode("<|tool|>wordlet<|x|>")
    assert vocabulary.decode(ids) == b"<|tool|>wordlet<|x|>"
    assert vocabulary.control_ids.isdisjoint(ids)


def test_added_tokens_in_a_chat_template_are_control_tokens() -> None:
    tokenizer = small()
    tokenizer.add_tokens(["[turn]", "[other]"])
    tokenizer.chat_template = "{% for m in messages %}[turn]{{ m.content }}{% endfor %}"
    assert set(Vocabulary(tokenizer).controls) == {"<end>", "[turn]"}
    tokenizer.chat_template = {"default": "[turn]", "tool_use": "[other]"}
    assert set(Vocabulary(tokenizer).controls) >= {"[turn]", "[other]"}


def test_settings_of_single_calls_do_not_change_the_fingerprint() -> None:
    tokenizer = small()
    before = Vocabulary(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert json.loads(tokenizer.backend_tokenizer.to_str())["truncation"]
    after = Vocabulary(tokenizer)
    assert after.fingerprint == before.fingerprint
    assert after.decode(after.encode("a b c d e")) == b"a b c d e"


def test_the_fingerprint_is_the_content() -> None:
    known, changed = Vocabulary(small()), small()
    changed.add_tokens(["wordlet"])
    others = [Vocabulary(changed), Vocabulary(small(), 999), fusing.bpe("other")]
    assert len({known.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert Vocabulary(small()).fingerprint == known.fingerprint
    # Padding and end ids change no text.
    assert Vocabulary(small(), 999, [1]).text_digest == known.text_digest
    assert len({known.text_digest, others[0].text_digest, others[2].text_digest}) == 3


def test_tokens_are_spelled_as_readable_text() -> None:
    vocabulary = fusing.vocabulary("mistral")
    assert [vocabulary.spell(i) for i in vocabulary.encode("a b")] == ["a", " b"]
    assert vocabulary.spell(2) == "</s>"
    assert "mistral" not in repr(vocabulary) or "byte strings" in repr(vocabulary)


@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "think", ">", "a", "é"])).map(
        "".join
    )
)
def test_answer_tags_are_one_token_in_answers_and_text_elsewhere(text: str) -> None:
    own = fusing.bpe("the", controls=("<end>", "<think>", "</think>"))
    ids = own.encode_answer(text.encode())
    assert own.decode_answer(ids) == text.encode()
    assert sum(index in own.control_ids for index in ids) == len(re.findall("</?think>", text))
    assert not own.control_ids & set(own.encode(text))
