"""Fields of GGUF files are those that the format's own package reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Quantized
from gguf import GGUFReader, GGUFWriter, quantize
from hypothesis import given
from hypothesis import strategies as st

from packfuse.errors import LoadError
from packfuse.models.loading.gguf.fields import check_model, gguf_header, gguf_parts, main_type
from tests.support.starter_files import write_gguf

NUMBERS = {
    "uint8": 2**8 - 1,
    "int8": -(2**7),
    "uint16": 2**16 - 1,
    "int16": -(2**15),
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "float32": 0.5,
    "bool": True,
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float64": 0.1,
}
LISTS: dict[str, list[Any]] = {
    "texts": ["a", "", "ä東", "b" * 300],
    "numbers": [1, -2, 3],
    "fractions": [0.5, 1.5],
    "flags": [True, False],
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a field of every type."""
    path = tmp_path_factory.mktemp("fields") / "all.gguf"
    writer = GGUFWriter(path, "llama")
    for kind, value in NUMBERS.items():
        getattr(writer, f"add_{kind}")(f"one.{kind}", value)
    for name, values in LISTS.items():
        writer.add_array(f"list.{name}", values)
    writer.add_string("text", "naïve")
    writer.add_tensor("weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theirs(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {name: f.contents() for name, f in fields.items() if not name.startswith("GGUF.")}


def test_all_types_are_read_as_by_the_package(file: Path, tmp_path: Path) -> None:
    found = gguf_header(file).fields
    assert found == theirs(file)
    assert {f"one.{kind}": value for kind, value in NUMBERS.items()}.items() <= found.items()
    write_gguf(tmp_path / "tiny.gguf", 0)
    assert gguf_header(tmp_path / "tiny.gguf").fields == theirs(tmp_path / "tiny.gguf")


def test_sizes_are_those_of_the_package(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((4, 512), np.float32)
    path = tmp_path / "types.gguf"
    writer = GGUFWriter(path, "llama")
    for kind in (Quantized.F32, Quantized.F16, Quantized.Q8_0, Quantized.Q4_0, Quantized.BF16):
        writer.add_tensor(kind.name, quantize(weight, kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    found, tensors = gguf_header(path), GGUFReader(path).tensors
    assert found.parameters == 5 * weight.size == sum(int(one.n_elements) for one in tensors)
    assert found.nbytes == sum(int(one.n_bytes) for one in tensors)
    more = found._replace(tensors=[(10**6, int(Quantized.Q4_K)), (32, 9999)])
    assert main_type([found, more]) == "Q4_K"
    assert main_type([found._replace(tensors=[(1, 9999)])]) == "?"
    unknown = found._replace(tensors=[*found.tensors, (32, 9999)])
    assert (unknown.parameters, unknown.nbytes) == (found.parameters + 32, None)


@given(st.data())
def test_a_damaged_file_is_read_or_refused(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = file.read_bytes()
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=3)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        gguf_header(path)
    except LoadError as error:
        assert "damaged.gguf" in error.message


def test_parts_of_a_split_file_are_found_or_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", 0, split=5)
    parts = sorted(tmp_path.glob("*.gguf"))
    fields = gguf_header(parts[0]).fields
    assert gguf_parts(parts[0], fields) == parts
    with pytest.raises(LoadError, match=rf"{parts[1].name} is not the first part.*00001-of"):
        gguf_parts(parts[1], gguf_header(parts[1]).fields)
    renamed = parts[0].with_name("first.gguf")
    with pytest.raises(LoadError, match=r"first\.gguf is one of .* is not named like one"):
        gguf_parts(renamed, fields)
    parts[-1].unlink()
    with pytest.raises(LoadError, match=f"and {parts[-1].name} is missing"):
        gguf_parts(parts[0], fields)
    write_gguf(tmp_path / "one.gguf", 0)
    one = tmp_path / "one.gguf"
    assert gguf_parts(one, gguf_header(one).fields) == [one]


def test_adapters_and_other_kinds_are_refused_by_name() -> None:
    check_model({})
    check_model({"general.type": "model"})
    with pytest.raises(LoadError, match=r"LoRA adapter of Llama, .*llama-export-lora"):
        check_model({"general.type": "adapter", "general.base_model.0.name": "Llama"})
    with pytest.raises(LoadError, match="the token 'b' twice"):
        check_model({"tokenizer.ggml.tokens": ["a", "b", "c", "b"]})
    with pytest.raises(LoadError, match="type 'mmproj'"):
        check_model({"general.type": "mmproj"})
