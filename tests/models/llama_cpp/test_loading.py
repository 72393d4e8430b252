"""What llama.cpp cannot run is refused with its reason and the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError
from packfuse.models.inspection import inspect_model
from packfuse.models.llama_cpp import LlamaCppMember
from packfuse.models.member import Read
from packfuse.settings import LoadSettings, MemberSettings
from tests.models.llama_cpp.conftest import SCALE, opened
from tests.models.llama_cpp.test_llama_cpp_member import IDS, assert_same, whole
from tests.support.starter_files import write_gguf


def pack_of(*members: Any, **settings: Any) -> Pack:
    return Pack.from_pretrained(list(members), progress=False, **settings)


def test_a_gguf_file_runs_in_llama_cpp_unless_a_setting_needs_transformers(gguf: Path) -> None:
    assert isinstance(pack_of(str(gguf)).members[0], LlamaCppMember)
    for entry, more in (
        ({"engine": "transformers"}, {}),
        ({"dtype": "bfloat16"}, {}),
        ({}, {"dtype": "float32"}),
    ):
        found = pack_of({"model": str(gguf), **entry}, **more).members[0]
        assert found.model is not None


def test_the_identity_tells_the_engines_apart(gguf: Path) -> None:
    one, other = (
        pack_of({"model": str(gguf), "engine": engine}).identity["members"][0]
        for engine in ("llama.cpp", "transformers")
    )
    assert one["weights"] != other["weights"]
    assert one["dtype"] == "all F32"
    assert one["source"] == str(gguf)


@pytest.mark.parametrize("cut", [3, 20, 1000, -400])
def test_a_cut_file_is_a_load_error(tmp_path: Path, gguf: Path, cut: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[:cut])
    with pytest.raises(LoadError, match=r"'cut'.*(not a whole one|corrupted or incomplete)"):
        opened(path)


def test_what_is_no_model_is_a_load_error(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("I am no GGUF file. " * 100)
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "folder.gguf").mkdir()
    for name in ("text", "empty", "folder"):
        with pytest.raises(LoadError, match=r"no GGUF file|cannot be read"):
            opened(tmp_path / f"{name}.gguf")
    adapter = GGUFWriter(tmp_path / "lora.gguf", "llama")
    adapter.add_type("adapter")
    adapter.write_header_to_file()
    adapter.write_kv_data_to_file()
    adapter.close()
    with pytest.raises(LoadError, match=r"LoRA adapter of its model.*llama-export-lora"):
        opened(tmp_path / "lora.gguf")


def test_an_architecture_that_llama_cpp_does_not_know(tmp_path: Path) -> None:
    write_gguf(tmp_path / "new.gguf", 0, architecture="marvel")
    with pytest.raises(LoadError, match="unknown model architecture: 'marvel'"):
        opened(tmp_path / "new.gguf")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "part.gguf", 0, without=("blk.0.ffn_up.weight",))
    with pytest.raises(LoadError, match=r"blk\.0\.ffn_up\.weight"):
        opened(tmp_path / "part.gguf")


def test_another_tokenizer_is_refused_with_the_first_difference(tmp_path: Path, gguf: Path) -> None:
    write_gguf(tmp_path / "gpt2.gguf", 0, pre="gpt-2")
    with pytest.raises(LoadError, match=r"not those of the tokenizer: .* number \d+ is \[\d+\] in"):
        opened(gguf, tokenizer=str(tmp_path / "gpt2.gguf"))


def test_layers_on_gpus_need_a_build_for_gpus(gguf: Path) -> None:
    opened(gguf, n_gpu_layers=0)
    with pytest.raises(ConfigError, match=r"n_gpu_layers=-1: .* without support for GPUs"):
        pack_of({"model": str(gguf), "n_gpu_layers": -1})


def test_parts_are_read_together(tmp_path: Path, gguf: Path) -> None:
    write_gguf(tmp_path / "split.gguf", 0, eot=2, context=2048, scale=SCALE, split=4)
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 1
    member = opened(parts[0])
    assert_same(whole(member, IDS), whole(opened(gguf), IDS))
    before = member.digest()
    with pytest.raises(LoadError, match=r"not the first part.*00001-of"):
        opened(parts[1])
    with pytest.raises(LoadError, match="transformers does not read files in several parts"):
        pack_of({"model": str(parts[0]), "engine": "transformers"})
    report = inspect_model(MemberSettings(model=str(parts[0]))).report
    assert report.parameters == member.facts.parameters
    parts[-1].write_bytes(parts[-1].read_bytes()[:-4] + b"abcd")
    assert opened(parts[0]).digest() != before
    parts[-1].unlink()
    with pytest.raises(LoadError, match=r"one of \d parts, and .* is missing"):
        opened(parts[0])


def test_a_check_shows_the_engine_and_the_memory_of_the_file(gguf: Path) -> None:
    in_place = inspect_model(MemberSettings(model=str(gguf))).report
    assert in_place.problems == []
    assert in_place.engine == "llama.cpp"
    assert in_place.memory_bytes == 4 * (in_place.parameters or 0)
    assert in_place.context_window == 2048
    float_way = inspect_model(MemberSettings(model=str(gguf), engine="transformers")).report
    assert float_way.engine == "transformers"
    assert float_way.parameters == in_place.parameters
    forced = inspect_model(MemberSettings(model=str(gguf)), LoadSettings(dtype="float32")).report
    assert forced.engine == "transformers"


def test_more_than_one_reason_is_not_lost(gguf: Path) -> None:
    """An error while members are loaded frees those before; the file can be opened again."""
    with pytest.raises(LoadError):
        pack_of(str(gguf), "/no/such/model.gguf")
    member = opened(gguf)
    assert member.read([Read(member.open(), IDS)])
