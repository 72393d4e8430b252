"""Which engine runs a member, with llama-cpp-python and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError
from packfuse.models.loading import engine
from packfuse.settings import LoadSettings, MemberSettings
from tests.support import pico
from tests.support.starter_files import write_gguf


@pytest.fixture(params=[True, False])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(engine, "is_installed", lambda: request.param)
    return bool(request.param)


def chosen(pack: dict[str, Any] | None = None, **member: Any) -> str:
    return engine.engine_of(MemberSettings.check(member), LoadSettings.check(pack or {}))


def test_auto_chooses_what_is_installed_and_fits(*, installed: bool) -> None:
    usual = "llama.cpp" if installed else "transformers"
    assert chosen(model="a.gguf") == usual
    assert chosen(model="a.gguf", tokenizer="b") == usual
    assert chosen(model="a") == "transformers"
    assert chosen(model="a.gguf", engine="transformers") == "transformers"
    assert chosen(model="a.gguf", dtype="bfloat16") == "transformers"
    assert chosen(model="a.gguf", quantization={"load_in_4bit": True}) == "transformers"
    assert chosen({"dtype": "float32"}, model="a.gguf") == "transformers"
    assert chosen({"device_map": "cpu"}, model="a.gguf") == "transformers"


def test_what_asks_for_llama_cpp_needs_the_extra(*, installed: bool, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", 0)
    ways: tuple[dict[str, Any], ...] = ({"engine": "llama.cpp"}, {"n_gpu_layers": 3})
    for more in ways:
        entry: dict[str, Any] = {"model": str(tmp_path / "a.gguf"), **more}
        if installed:
            assert chosen(**entry) == "llama.cpp"
            continue
        with pytest.raises(ConfigError, match=r"not installed.*pip install .*\[llama-cpp\]"):
            Pack.from_pretrained([entry], progress=False)


@pytest.mark.usefixtures("installed")
def test_llama_cpp_runs_gguf_files_only() -> None:
    with pytest.raises(ConfigError, match="reads GGUF files, and 'a/b' is none"):
        chosen(model="a/b", engine="llama.cpp")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"engine": "llama.cpp", "dtype": "float32"},
            "dtype: of no effect with engine='llama.cpp'",
        ),
        ({"engine": "transformers", "n_gpu_layers": 1}, "n_gpu_layers: of no effect with engine"),
        ({"n_gpu_layers": 1, "dtype": "float32"}, "dtype: of no effect with engine='llama.cpp'"),
        ({"engine": "vllm"}, "engine: .*'llama.cpp'"),
        ({"n_gpu_layers": -2}, "n_gpu_layers"),
        ({"url": "http://a", "engine": "llama.cpp"}, "engine: of no effect with a url"),
        ({"url": "http://a", "n_gpu_layers": 1}, "n_gpu_layers: of no effect with a url"),
    ],
)
def test_settings_without_effect_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        MemberSettings.check({"model": "a.gguf", **fields})


def test_adapters_of_gguf_files_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base.gguf"}')
    pico.real_tokenizer("mistral").save_pretrained(folder)
    with pytest.raises(LoadError, match=r"an adapter of 'base\.gguf'; adapters of GGUF files"):
        Pack.from_pretrained([str(folder)], progress=False)
