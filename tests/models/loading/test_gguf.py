"""GGUF files: their tokenizers are those of the original models, and they are converted once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from packfuse import Pack
from packfuse.cli.kept import kept
from packfuse.errors import LoadError
from packfuse.models.loading import load_tokenizer
from packfuse.models.loading.gguf import copy as gguf_copy
from packfuse.models.loading.gguf.tokenizer import SPLITS, gguf_tokenizer
from packfuse.models.loading.source import Source
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico, starter_files
from tests.support.starter_files import MERGES, SPECIALS, write_gguf

CONTROL, USER, UNUSED = 3, 4, 5
BEGIN, END = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
TEXT = 256 + len(MERGES) + len(SPECIALS)
"""The first id after the text tokens."""
MORE = [
    (BEGIN, CONTROL),
    (END, CONTROL),
    ("<|end|>", CONTROL),
    ("<think>", USER),
    ("[PAD266]", UNUSED),
    ("[PAD267]", UNUSED),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACKFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with control tokens that are not of the byte alphabet, and unused ones."""
    write_gguf(tmp_path / "tiny.gguf", 0, pre="deepseek-v3", more=MORE, bos=TEXT, eos=TEXT + 1)
    return tmp_path / "tiny.gguf"


def vocabulary(path: Path) -> Vocabulary:
    return Vocabulary(gguf_tokenizer(path), TEXT + len(MORE))


def loaded(path: Path, **settings: Any) -> Pack:
    entry = {"model": str(path), "engine": "transformers"}
    return Pack.from_pretrained([entry], progress=False, **settings)


def test_special_tokens_have_the_ids_of_the_file(file: Path) -> None:
    pack = loaded(file)
    own = pack.members[0].vocabulary
    assert own.prefix_ids == (TEXT,)
    assert own.end_ids[0] == TEXT + 1
    assert set(own.end_ids) == {TEXT + 1, SPECIALS.index("<|im_end|>"), 0, TEXT + 2}
    assert own.token_bytes[TEXT:] == [None, None, None, b"<think>", None, None]
    assert own.encode("[PAD266]") != [TEXT + 4]
    assert own.decode(own.encode(f"{BEGIN}[PAD266]")) == f"{BEGIN}[PAD266]".encode()
    assert pack.generate("hello", max_new_tokens=2).record is not None


def test_turn_ends_that_the_file_names_count(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", 0, more=[("<fin>", CONTROL)], eot=TEXT)
    assert TEXT in loaded(tmp_path / "a.gguf").members[0].vocabulary.end_ids


@pytest.mark.parametrize("name", ["falcon-x", "none-such", "default", ""])
def test_an_unknown_split_is_refused_with_the_way(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, 0, pre=name)
    with pytest.raises(LoadError, match=r"splits text in a way that is not known.*`tokenizer`"):
        loaded(path)
    tokenizer = gguf_tokenizer(_known(tmp_path))
    tokenizer.save_pretrained(tmp_path / "original")
    entry = {"model": str(path), "tokenizer": str(tmp_path / "original"), "engine": "transformers"}
    assert Pack.from_pretrained([entry], progress=False).generate("hello", max_new_tokens=1)


def _known(folder: Path) -> Path:
    write_gguf(folder / "known.gguf", 0)
    return folder / "known.gguf"


def _patterns(tokenizer: Tokenizer) -> list[str]:
    steps = json.loads(tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    found = [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]
    # Some write a line end itself, others its escape.
    return [pattern.replace("\r", r"\r").replace("\n", r"\n") for pattern in found]


@pytest.mark.parametrize(("name", "package"), [("deepseek-v3", "deepseek"), ("tekken", "tekken")])
def test_splits_are_those_of_the_original_tokenizers(name: str, package: str) -> None:
    found = _patterns(pico.real_tokenizer(package).backend_tokenizer)
    assert found == list(SPLITS[name])


def test_splits_are_those_of_transformers_where_it_knows_them() -> None:
    mapping = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping",
        reason="this version of transformers has no table of splits",
    )
    theirs = mapping.GGUF_PRE_TOKENIZER_SPLITS
    both = [name for name in theirs if name in SPLITS]
    assert len(both) > 15
    assert {name: SPLITS[name] for name in both} == {name: (theirs[name],) for name in both}


def _folder(file: Path, folder: Path) -> Vocabulary:
    """The tokenizer as its folder has it: control tokens added, unused ones not there."""
    from tokenizers import AddedToken, decoders, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = {token: index for index, token in enumerate(starter_files.vocabulary())}
    first, second = zip(*(merge.split() for merge in MERGES), strict=True)
    backend = Tokenizer(BPE(text, list(zip(first, second, strict=True))))
    specials = [AddedToken(token, normalized=False, special=True) for token in SPECIALS]
    specials += [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in MORE
        if kind != UNUSED
    ]
    backend.add_tokens(specials)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END).save_pretrained(folder)
    loaded = load_tokenizer(Source(str(folder), None, {}), None, Source(str(folder), None, {}))
    return Vocabulary(loaded, TEXT + 64)


def test_a_file_and_a_folder_of_one_family_have_one_tokenizer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", 0, more=MORE, bos=TEXT, eos=TEXT + 1)
    one, other = vocabulary(tmp_path / "tiny.gguf"), _folder(tmp_path, tmp_path / "folder")
    assert one.columns != other.columns
    assert one.text_digest == other.text_digest
    different = tmp_path / "different.gguf"
    write_gguf(different, 0, more=MORE, pre="gpt-2", bos=TEXT, eos=TEXT + 1)
    assert vocabulary(different).text_digest != other.text_digest


@given(st.text(max_size=40))
def test_one_digest_means_one_way_to_write_a_text(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "digest"
    if not folder.exists():
        folder.mkdir()
        write_gguf(folder / "tiny.gguf", 0, more=MORE, bos=TEXT, eos=TEXT + 1)
        _folder(folder, folder / "folder")
    one, other = vocabulary(folder / "tiny.gguf"), _folder(folder, folder / "folder")
    assert one.encode(text) == other.encode(text)


def test_a_file_is_converted_once_and_again_when_it_changes(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loaded(file)
    (copied,) = (path for path in (cache / "gguf").iterdir() if path.is_dir())
    assert [(one.path, one.source) for one in kept(["gguf"])] == [(copied, str(file.resolve()))]
    made = (copied / "model.safetensors").stat().st_ino
    again = loaded(file, dtype="bfloat16")
    assert (copied / "model.safetensors").stat().st_ino == made
    assert again.members[0].model.dtype == torch.bfloat16
    assert first.members[0].name == again.members[0].name == "tiny"
    assert first.identity["members"][0]["model"] == str(file)
    assert first.members[0].vocabulary.fingerprint == again.members[0].vocabulary.fingerprint
    before = first.members[0].model.state_dict()
    weights = write_gguf(file, 1, pre="deepseek-v3", more=MORE, bos=TEXT, eos=TEXT + 1)
    os.utime(file, (1, 1))
    after = loaded(file).members[0].model.state_dict()
    assert not before["lm_head.weight"].equal(after["lm_head.weight"])
    assert after["model.embed_tokens.weight"].numpy() == pytest.approx(weights["token_embd.weight"])
    assert [path.name for path in (cache / "gguf").iterdir() if path.is_dir()] == [copied.name]
    # Without room for a copy it is read as it is, with the same answer.
    monkeypatch.setattr(gguf_copy, "free_bytes", lambda _: 0)
    os.utime(file, (2, 2))
    plain = loaded(file).members[0].model.state_dict()
    assert all(value.equal(plain[name]) for name, value in after.items())


def test_a_cache_that_cannot_be_written_is_said(file: Path, cache: Path) -> None:
    cache.write_text("no folder")
    with pytest.warns(RuntimeWarning, match=r"tiny\.gguf is converted anew"):
        assert loaded(file).generate("hello", max_new_tokens=1)


def test_a_large_vocabulary_is_loaded_without_the_hub(tmp_path: Path) -> None:
    """Above 100,000 tokens, transformers looks for the model on the hub."""
    more = [(f"token{number}", 1) for number in range(100_000)]
    write_gguf(tmp_path / "large.gguf", 0, more=more)
    made = gguf_tokenizer(tmp_path / "large.gguf")
    assert made.name_or_path == str(tmp_path / "large.gguf")
    assert len(made) == TEXT + 100_000
