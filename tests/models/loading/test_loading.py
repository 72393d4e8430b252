"""What is loaded as a member, and what is refused: weights, files, trust, devices and names."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BartConfig, BertConfig, Qwen3_5Config

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError, LoadError, PackError
from packfuse.models.inspection import inspect_model
from packfuse.models.loading.architecture import auto_class
from packfuse.settings import MemberSettings
from tests.support import pico, starter_files
from tests.support.bytelevel import save_small
from tests.support.quick import quick

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of about 60 kB."""
    return save_small(tmp_path_factory.mktemp("models") / "small", 300, seed=0, context=100)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(original, tmp_path / "small")


def loaded(model: Any, **arguments: Any) -> Pack:
    return Pack.from_pretrained([model], progress=False, **arguments)


def problems(model: Any) -> str:
    """What `packfuse check` finds."""
    return " ".join(inspect_model(MemberSettings(model=str(model))).report.problems)


def _without(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_without("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
        (_without("model.norm.weight"), "model.norm.weight"),
        (_without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
        (_without("lm_head.weight"), "lm_head.weight"),
        (lambda w: w.update({"model.norm.weight": torch.ones(5)}), r"model.norm.weight \(\(5,\)"),
        (lambda w: w.update({"model.layers.7.x.weight": torch.ones(5)}), "model.layers.7.x.weight"),
        (lambda w: w.clear(), "lm_head.weight.* more are missing"),
    ],
)
def test_weights_that_are_not_the_models_are_named(
    folder: Path, change: Callable[[Weights], object], named: str
) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=rf"member 'small'.*{named}"):
        loaded(folder)
    assert named.split("(", maxsplit=1)[0].strip("\\ ") in problems(folder) or ".*" in named


def test_tied_weights_and_buffers_need_not_be_there(tmp_path: Path) -> None:
    folder = pico.save_tiny(tmp_path / "tied", "mistral", tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    loaded(folder)
    assert problems(folder) == ""


def test_a_tensor_that_is_missing_in_a_gguf_file_is_named(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.gguf", tmp_path / "part.gguf"
    starter_files.write_gguf(whole, 0)
    starter_files.write_gguf(part, 0, without=("blk.0.ffn_up.weight",))
    assert loaded(whole).generate("he", max_new_tokens=1)
    with pytest.raises(LoadError, match=r"model\.layers\.0\.mlp\.up_proj\.weight are missing"):
        loaded(part)


def _pickled(folder: Path) -> Path:
    """Save the weights as a pickle that leaves a mark where it is opened; return the mark."""
    mark = folder.parent / "opened"
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "weights.bin")
    return mark


def _index(folder: Path, file: str) -> None:
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "other.safetensors")


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("weights.bin", "not safetensors"),
        ("../weights.bin", "outside"),
        ("../small/other.safetensors", "outside"),
        ("{folder}/other.safetensors", "outside"),
        ("C:\\models\\other.safetensors", "outside"),
        ("sub/../../other.safetensors", "outside"),
        ("gone.safetensors", "missing"),
    ],
)
@pytest.mark.parametrize("unsafe", [False, True])
def test_an_index_names_safetensors_inside_the_folder(
    folder: Path, named: str, reason: str, unsafe: bool
) -> None:
    _pickled(folder)
    shutil.copy(folder / "weights.bin", folder.parent)
    _index(folder, named.format(folder=folder))
    if unsafe and named == "weights.bin":
        loaded(folder, unsafe_weights=True)
        return
    with pytest.raises(LoadError, match=reason):
        loaded(folder, unsafe_weights=unsafe)
    if not unsafe:
        assert reason in problems(folder) or "safetensors" in problems(folder)


def test_a_configuration_cannot_name_pickled_weights(folder: Path) -> None:
    _pickled(folder)
    (folder / "weights.bin").rename(folder / "adapter_model.bin")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "adapter_model.bin"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="not safetensors"):
        loaded(folder)


def test_shards_are_loaded_and_one_that_is_missing_is_named(tmp_path: Path) -> None:
    model, tokenizer = pico.tiny_pair("mistral")
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    tokenizer.save_pretrained(tmp_path)
    loaded(tmp_path)
    last = max(tmp_path.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(LoadError, match=f"{last.name}.*missing"):
        loaded(tmp_path)


def test_pickled_weights_are_accepted_by_the_caller_alone(folder: Path) -> None:
    _pickled(folder)
    (folder / "weights.bin").rename(folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"pickled weights only.*unsafe_weights=True"):
        loaded(folder)
    assert loaded(folder, unsafe_weights=True).generate("he", max_new_tokens=1)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Another user, if this is the superuser, for whom files are always readable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_unreadable_file_is_named_and_nothing_unsafe_is_advised(
    original: Path, name: str
) -> None:
    # Not in pytest's folder, which other users cannot enter.
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = shutil.copytree(original, Path(place, "small"))
        for file in folder.iterdir():
            file.chmod(0o644)
        (folder / name).chmod(0o200)
        with _as_nobody(), pytest.raises(LoadError) as caught:
            loaded(folder)
    assert "ermission denied" in str(caught.value)
    assert name in str(caught.value)
    assert "unsafe" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"more",
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: struct.pack("<Q", 2**40) + data[8:],
        lambda data: struct.pack("<Q", 4) + b"null",
        lambda data: struct.pack("<Q", 70) + b'{"a":{"dtype":"F32","shape":[99999999999],',
        lambda data: data.replace(b'"F32"', b'"F99"', 1),
    ],
)
def test_a_damaged_file_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(LoadError, match=r"model\.safetensors is damaged or incomplete"):
        loaded(folder)
    assert problems(folder)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_damaged_gguf_file_is_a_load_error(
    tmp_path: Path, cut: float, at: float, byte: int
) -> None:
    """Truncated anywhere, and with a wrong byte in the header."""
    file = tmp_path / "tiny.gguf"
    if not file.exists():
        starter_files.write_gguf(file, 0)
    data = file.read_bytes()
    short, wrong = tmp_path / "short.gguf", tmp_path / "wrong.gguf"
    short.write_bytes(data[: int(cut * (len(data) - 1))])
    place = int(at * 600)
    wrong.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
    with pytest.raises(LoadError, match="short"):
        loaded(short)
    try:
        loaded(wrong)
    except PackError as error:
        assert "wrong" in str(error)


@pytest.mark.parametrize(
    "name",
    quick(["a\0b", "x" * 5000 + ".gguf", "", "/", "x" * 5000, "/" + "x" * 5000, "a\0b.gguf"], 4),
)
def test_names_that_cannot_be_paths_are_typed_errors(tmp_path: Path, name: str) -> None:
    for entry in (name, {"model": name}):
        with pytest.raises(PackError):
            loaded(entry)
    assert problems(name)
    file = tmp_path / "pack.yaml"
    file.write_text(yaml.safe_dump({"members": [name]}))
    with pytest.raises(PackError):
        Pack.from_config(file, progress=False)
    with pytest.raises(PackError):
        Pack.from_config(name, progress=False)


@pytest.fixture
def remote(folder: Path) -> Path:
    """A model with code of its own, which leaves a mark when it runs."""
    mark = folder.parent / "ran"
    code = f"""
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({str(mark)!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "auto_map": auto, "architectures": ["OwnModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["trust_remote_code", "unsafe_weights"])
def test_a_file_cannot_widen_trust(remote: Path, tmp_path: Path, name: str) -> None:
    file, mark = tmp_path / "pack.yaml", tmp_path / "ran"
    file.write_text(yaml.safe_dump({"members": [str(remote)], name: True}))
    readers: list[Callable[[], Any]] = [
        lambda: Pack.from_config(file, progress=False),
        lambda: Pack.given(pack_file=file, progress=False),
        lambda: PackConfig.read(file),
        lambda: loaded({"model": str(remote), name: True}),
    ]
    for read in readers:
        with pytest.raises(ConfigError, match=name):
            read()
    # Of two such settings, the caller's one does not allow the other.
    other = "unsafe_weights" if name == "trust_remote_code" else "trust_remote_code"
    with pytest.raises(ConfigError, match=name):
        Pack.from_config(file, progress=False, **{other: True})
    with pytest.raises(LoadError, match="trust_remote_code=True"):
        Pack.from_config(file, progress=False, **{name: False})
    assert not mark.exists()


def test_the_caller_can_trust_the_models_of_a_file(remote: Path, tmp_path: Path) -> None:
    file, mark = tmp_path / "pack.yaml", tmp_path / "ran"
    file.write_text(yaml.safe_dump({"members": [str(remote)], "trust_remote_code": True}))
    pack = Pack.from_config(file, progress=False, trust_remote_code=True)
    assert type(pack.members[0].model).__name__ == "OwnModel"
    assert mark.exists()
    pack.save_config(tmp_path / "saved.yaml")
    assert "trust_remote_code" not in (tmp_path / "saved.yaml").read_text()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"device_map": "cuda:77"}, "device_map: 'cuda:77' is not available"),
        ({"device_map": {"": "nowhere"}}, "device_map: 'nowhere' is not a device"),
        ({"device_map": {"": "mps:9"}}, "device_map: 'mps:9' is not available"),
        ({"device_map": 77}, "device_map: 77 is not"),
        ({"device_map": {"": torch.device("cuda", 77)}}, "device_map: 'cuda:77' is not available"),
        ({"dtype": "float99"}, "dtype: 'float99' is unknown"),
        ({"torch_dtype": "nn"}, "dtype: 'nn' is unknown"),
        ({"dtype": "float32", "torch_dtype": "float32"}, "torch_dtype is another name of dtype"),
        ({"attn_implementation": "none_such"}, "none_such"),
    ],
)
def test_what_nothing_can_be_loaded_with_is_said_in_a_line(
    folder: Path, settings: dict[str, Any], reason: str
) -> None:
    for load in (
        lambda: loaded(folder, **settings),
        lambda: loaded({"model": str(folder), **settings}),
    ):
        with pytest.raises(PackError, match=reason) as caught:
            load()
        assert len(str(caught.value)) < 500


def test_settings_have_the_names_of_transformers(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "repository" / "inner")
    member = {"model": str(tmp_path / "repository"), "subfolder": "inner"}
    pack = loaded(
        member,
        torch_dtype=torch.bfloat16,
        attn_implementation="eager",
        device_map="auto",
        max_memory={"cpu": "1GiB"},
        offload_folder=tmp_path / "offload",
        token="hf_secret",  # noqa: S106  (no such token)
        cache_dir=tmp_path / "cache",
    )
    model = pack.members[0].model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert pack.generate("he", max_new_tokens=1).text is not None
    pack.save_config(tmp_path / "pack.yaml")
    written = (tmp_path / "pack.yaml").read_text()
    assert "secret" not in written + repr(pack._config) + json.dumps(pack.identity)
    again = Pack.from_config(tmp_path / "pack.yaml", progress=False, torch_dtype="float32")
    assert again.members[0].model.dtype == torch.float32


def _config(kind: Any, *architectures: str, **fields: Any) -> Any:
    return kind(architectures=list(architectures), **fields)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (lambda: _config(Qwen3_5Config, "Qwen3_5ForConditionalGeneration"), True),
        (lambda: _config(Qwen3_5Config, "Qwen3_5ForCausalLM"), True),
        (lambda: _config(Qwen3_5Config), True),
        (lambda: _config(BertConfig, "BertModel"), False),
        (lambda: _config(BertConfig, "BertForMaskedLM"), False),
        (lambda: _config(BartConfig, "BartForConditionalGeneration"), False),
        (lambda: _config(Qwen3_5Config, "Qwen3_5ForSequenceClassification"), False),
    ],
)
def test_the_outer_class_does_not_decide(config: Callable[[], Any], found: bool) -> None:
    assert (auto_class(config()) is not None) == found


def test_what_is_no_language_model_is_refused_with_the_reason(folder: Path) -> None:
    BertConfig(architectures=["BertModel"], vocab_size=320).save_pretrained(folder)
    with pytest.raises(LoadError, match="BertModel, not a causal language model"):
        loaded(folder)


@pytest.mark.parametrize("beside", quick([True, False], 1))
def test_a_mistral_folder_has_a_fast_tokenizer(tmp_path: Path, beside: bool) -> None:
    """With mistral-common installed, transformers would take that package's own tokenizer."""
    folder = pico.save_tiny(tmp_path / "mistral", "tekken")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(pico.mistral_data("tekken_240911.json"), folder / "tekken.json")
    if not beside:
        for file in folder.glob("tokenizer*"):
            file.unlink()
    own = loaded(folder).members[0].vocabulary
    expected = pico.real_tokenizer("tekken")("a word", add_special_tokens=False)["input_ids"]
    assert own.encode("a word") == expected
    assert problems(folder) == ""


def test_a_model_in_the_cache_needs_no_connection(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that a model may have are looked for, and need not be there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--org--small"
    shutil.copytree(original, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    pack = loaded("org/small", cache_dir=str(tmp_path / "hub"))
    assert pack.names == ["small"]
    member = MemberSettings(model="org/small", cache_dir=str(tmp_path / "hub"))
    assert inspect_model(member).report.problems == []
    with pytest.raises(LoadError, match="org/other"):
        loaded("org/other", cache_dir=str(tmp_path / "hub"))
