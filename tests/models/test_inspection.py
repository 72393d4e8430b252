"""`packfuse check` without its tables: what is read of a model before it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig

from packfuse.cli.commands.check import _models
from packfuse.errors import LoadError
from packfuse.models.inspection import inspect_model, pair, report
from packfuse.models.loading.checkpoint import checkpoint_size
from packfuse.models.loading.source import Source
from packfuse.settings import LoadSettings, MemberSettings
from packfuse.text.vocabulary import Vocabulary
from tests.support import pico, starter_files
from tests.support.bytelevel import save_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return save_small(tmp_path_factory.mktemp("models") / "small", 300, seed=0, context=100)


def test_facts_are_those_of_the_loaded_model(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = inspect_model(MemberSettings(model=str(folder))).report
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert found.model_dump() == {
        "model": str(folder),
        "name": "small",
        "architecture": "LlamaForCausalLM",
        "causal": True,
        "parameters": numbers,
        "memory_bytes": 4 * numbers,
        "context_window": 100,
        "chat_template": False,
        "vocabulary_size": 300,
        "fast_tokenizer": True,
        "candidates": None,
        "scored_places": None,
        "engine": "transformers",
        "cache": None,
        "static_steps": True,
        "eager_reason": None,
        "problems": [],
    }


def test_memory_counts_the_dtype_that_the_member_or_the_pack_asks_for(folder: Path):
    pack = LoadSettings(dtype="bfloat16")
    member = MemberSettings(model=str(folder))
    numbers = checkpoint_size(Source.of(member, pack)).parameters
    assert inspect_model(member, pack).report.memory_bytes == 2 * numbers
    own = MemberSettings(model=str(folder), dtype="float64", name="mine")
    assert inspect_model(own, pack).report.memory_bytes == 8 * numbers
    assert inspect_model(own).report.name == "mine"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_is_counted_as_stored_over_several_files(tmp_path: Path, dtype: torch.dtype):
    model, tokenizer = pico.tiny_pair("mistral", tied=True)
    model = model.bfloat16() if dtype == torch.bfloat16 else model
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = inspect_model(MemberSettings(model=str(tmp_path))).report
    assert found.parameters == model.num_parameters()
    assert found.memory_bytes == model.get_memory_footprint(return_buffers=False)


def test_what_cannot_be_captured_is_told_from_the_configuration(folder: Path, tmp_path: Path):
    assert inspect_model(MemberSettings(model=str(folder))).report.static_steps
    flash = MemberSettings(model=str(folder), attn_implementation="flash_attention_2")
    found = inspect_model(flash).report
    assert (found.static_steps, found.eager_reason) == (
        False,
        "its attention is 'flash_attention_2', neither 'sdpa' nor 'eager'",
    )
    pico.save_tiny(tmp_path, "mistral", "lfm2")
    recurrent = inspect_model(MemberSettings(model=str(tmp_path))).report
    assert not recurrent.problems
    assert "layers of the kind" in str(recurrent.eager_reason)
    text = "".join(str(row) for row in _models([found, recurrent]).columns[1].cells)
    assert "eager: its attention" in text


def test_a_gguf_file_is_read_by_its_header(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    weights = starter_files.write_gguf(path, seed=0)
    found = inspect_model(MemberSettings(model=str(path), engine="transformers")).report
    numbers = sum(weight.size for weight in weights.values())
    assert (found.name, found.architecture, found.causal) == ("tiny", "LlamaForCausalLM", True)
    assert (found.parameters, found.memory_bytes) == (numbers, 4 * numbers)
    assert found.context_window == starter_files.CONTEXT
    assert found.chat_template
    assert found.vocabulary_size == len(starter_files.vocabulary())


def test_pairs_are_compared_by_the_bytes_of_their_tokens():
    one, other = (Vocabulary(pico.real_tokenizer(name)) for name in ("mistral", "deepseek"))
    mine = [token for token in one.token_bytes if token]
    theirs = [token for token in other.token_bytes if token]
    found = pair("one", one, "other", other)
    common, either = set(mine) & set(theirs), set(mine) | set(theirs)
    assert found.overlap == pytest.approx(len(common) / len(either))
    for name, tokens in (("one", mine), ("other", theirs)):
        twins = sum(token in common for token in tokens)
        assert found.twins[name] == pytest.approx(twins / len(tokens))
    assert not found.same
    assert pair("one", one, "copy", one).same


def test_a_report_names_what_repeats_and_sums_up(folder: Path):
    seen = inspect_model(MemberSettings(model=str(folder)))
    found = report([seen, seen, seen])
    assert [model.name for model in found.models] == ["small", "small-2", "small-3"]
    assert [item.models for item in found.pairs] == [
        ("small", "small-2"),
        ("small", "small-3"),
        ("small-2", "small-3"),
    ]
    assert all(item.same and item.overlap == 1 for item in found.pairs)
    assert found.memory_bytes == 3 * (seen.report.memory_bytes or 0) > 0
    assert found.ok
    words = " ".join(found.verdicts)
    assert "These 3 models make a pack." in words
    assert "100 tokens, the window of small" in words
    assert "small and small-3 share a tokenizer" in words
    with pytest.raises(LoadError, match="no models"):
        report([])


def _without_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "no weights"


def _pickled(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "safetensors are expected"


def _cut(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"\x08\x00")
    return "too small"


def _encoder(folder: Path) -> str:
    BertConfig(architectures=["BertModel"], vocab_size=320).save_pretrained(folder)
    return "it is a BertModel, not a causal language model"


def _without_tokenizer(folder: Path) -> str:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return "tokenizer"


def _broken_config(folder: Path) -> str:
    (folder / "config.json").write_text("{")
    return "config.json"


@pytest.mark.parametrize(
    "damage",
    [_without_weights, _pickled, _cut, _encoder, _without_tokenizer, _broken_config],
)
def test_what_is_wrong_with_a_model_is_its_problem_alone(folder: Path, tmp_path: Path, damage):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    expected = damage(broken)
    seen = [inspect_model(MemberSettings(model=str(path))) for path in (folder, broken)]
    found = report(seen)
    assert not found.ok
    assert found.models[0].problems == []
    assert expected in " ".join(found.models[1].problems)
    assert found.verdicts == ["broken cannot join a pack."]


def test_a_tokenizer_whose_tokens_are_no_bytes_is_a_problem(folder: Path, tmp_path: Path):
    broken = tmp_path / "words"
    shutil.copytree(folder, broken)
    spec = json.loads((broken / "tokenizer.json").read_text())
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (broken / "tokenizer.json").write_text(json.dumps(spec))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (broken / "tokenizer_config.json").write_text(json.dumps(plain))
    assert AutoTokenizer.from_pretrained(broken).is_fast
    found = inspect_model(MemberSettings(model=str(broken))).report
    assert len(found.problems) == 1
    assert "byte" in found.problems[0]


def test_a_model_that_is_nowhere_is_named_with_the_reason():
    found = report([inspect_model(MemberSettings(model="nobody/has-this-model"))])
    assert not found.ok
    assert found.models[0].problems
    assert found.verdicts == ["has-this-model cannot join a pack."]
