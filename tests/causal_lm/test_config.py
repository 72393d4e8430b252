"""The configuration of a pack as a transformers model: special tokens, and how it is shown."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from packfuse import Pack
from tests.support import packs
from tests.support.small import small_pack


@pytest.fixture
def pack() -> Pack:
    return small_pack()


def test_one_end_token_is_a_number(pack: Pack) -> None:
    [end] = pack.members[0].vocabulary.end_ids
    assert pack.model.config.eos_token_id == end
    assert pack.model.generation_config.eos_token_id == end


def test_several_end_tokens_are_a_list(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack.members[0].vocabulary, "end_ids", (5, 7))
    model = Pack(pack.members, reference="long", progress=False).model
    assert model.config.eos_token_id == [5, 7]
    assert model.generation_config.eos_token_id == [5, 7]


@pytest.mark.parametrize("ends", [(5,), (5, 7)])
@pytest.mark.parametrize("place", ["argument", "config", "call", "generation_config", "default"])
def test_people_pad_with_the_end_token(
    pack: Pack, monkeypatch: pytest.MonkeyPatch, ends: tuple[int, ...], place: str
) -> None:
    """`pad_token_id=model.config.eos_token_id` works, also where it is a list."""
    monkeypatch.setattr(pack.members[0].vocabulary, "end_ids", ends)
    pack = Pack(pack.members, reference="long", progress=False)
    model, ids = pack.model, torch.tensor([pack.members[0].vocabulary.encode("hello")] * 2)
    pad: Any = model.config.eos_token_id
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, **settings, pad_token_id=5)
    if place == "call":
        texts = pack.generate(["hello", "hello the"], max_new_tokens=8, pad_token_id=pad)
        alone = pack.generate("hello", max_new_tokens=8)
        assert texts[0].text == alone.text
        return
    if place == "argument":
        found = model.generate(ids, **settings, pad_token_id=pad)
    elif place == "generation_config":
        config = GenerationConfig(**settings, eos_token_id=list(ends))
        config.pad_token_id = pad
        found = model.generate(ids, generation_config=config)
        assert config.pad_token_id == pad
    elif place == "default":
        model.generation_config.pad_token_id = pad
        found = model.generate(ids, **settings)
    else:
        model.config.pad_token_id = pad
        assert pack.generate(["hello", "hello the"], max_new_tokens=8)
        found = model.generate(ids, **settings, pad_token_id=model.config.pad_token_id)
    assert found.tolist() == expected.tolist()


def test_a_pack_shows_what_it_is() -> None:
    members = packs.tiny_members(["deepseek", "mistral"])
    pack = packs.tiny_pack(members, fusion={"name": "unite", "k": 5}, reference="mistral")
    shown = repr(pack)
    sizes = [int(m.model.num_parameters()) for m in members]
    for word in ("deepseek", "mistral", "unite(k=5)", "exact", "reference mistral"):
        assert word in shown
    found = [float(size) * 1e6 for size in re.findall(r"\(([\d.]+)M\)", shown)]
    assert found == pytest.approx(sizes, rel=0.01)
    assert len(shown) < 200
    model = repr(pack.model)
    assert "deepseek, mistral" in model
    assert str(pack.model.config.vocab_size) in model
    assert len(model) < 200
