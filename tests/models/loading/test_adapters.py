"""Adapters: folders of their own, and models in PEFT's wrapper."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from packfuse import Pack
from packfuse.errors import LoadError
from tests.support import pico

# PEFT calls a method of torch.nn under its old name.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PROMPT = "The capital of France is"


def _peft() -> Any:
    return pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")


def _score(model: Any, **settings: Any) -> float:
    pack = Pack.from_pretrained([model], progress=False, **settings)
    return pack.score(PROMPT, " Paris")


def _adapted(seed: int = 0) -> tuple[Any, Any]:
    """A tiny model in PEFT's wrapper, with an adapter that changes its answers."""
    peft = _peft()
    model, tokenizer = pico.tiny_pair("mistral", seed=seed)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora" in name:
            weight.data.normal_(std=0.5, generator=generator)
    return adapted.eval(), tokenizer


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base model, and an adapter of it that names it."""
    _peft()
    base = pico.save_tiny(tmp_path / "base", "mistral")
    adapted, _ = _adapted()
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def test_a_model_in_pefts_wrapper_is_its_merged_model() -> None:
    adapted, tokenizer = _adapted()
    found = _score((adapted, tokenizer))
    assert found != pytest.approx(_score(pico.tiny_pair("mistral")), abs=1e-3)
    assert found == pytest.approx(_score((adapted.merge_and_unload(), tokenizer)), abs=1e-4)


def test_an_adapter_folder_is_loaded_with_the_model_that_it_names(
    folders: tuple[Path, Path],
) -> None:
    base, adapter = folders
    expected = _score(_adapted())
    assert _score(str(adapter)) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(_score(str(base)), abs=1e-3)
    # A base that is named beside the adapter, and an adapter inside its base.
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "../base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert _score(str(adapter)) == pytest.approx(expected, abs=1e-4)
    for file in adapter.glob("adapter*"):
        shutil.copy(file, base)
    assert _score(str(base)) == pytest.approx(expected, abs=1e-4)


def test_weights_that_are_missing_are_named_in_adapter_and_base(
    folders: tuple[Path, Path],
) -> None:
    base, adapter = folders
    for folder, file, name in (
        (adapter, "adapter_model.safetensors", "lora_A"),
        (base, "model.safetensors", "model.norm.weight"),
    ):
        whole = load_file(folder / file)
        gone = next(key for key in whole if name in key)
        save_file({k: v for k, v in whole.items() if k != gone}, folder / file)
        with pytest.raises(LoadError, match=name):
            _score(str(adapter))
        save_file(whole, folder / file, metadata={"format": "pt"})


def test_a_pickled_adapter_is_refused(folders: tuple[Path, Path]) -> None:
    _, adapter = folders
    weights = load_file(adapter / "adapter_model.safetensors")
    torch.save(weights, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(LoadError, match="pickled weights only"):
        _score(str(adapter))
    assert _score(str(adapter), unsafe_weights=True) == pytest.approx(_score(_adapted()), abs=1e-4)


def test_an_adapter_of_an_adapter_is_refused(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    for file in adapter.glob("adapter*"):
        shutil.copy(file, base)
    with pytest.raises(LoadError, match="which has an adapter itself"):
        _score(str(adapter))


def test_an_adapter_that_puts_vectors_before_the_text_is_refused() -> None:
    peft = _peft()
    model, tokenizer = pico.tiny_pair("mistral")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(LoadError, match="vectors before the text"):
        _score((peft.get_peft_model(model, config), tokenizer))


def test_an_adapter_without_peft_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico.save_tiny(tmp_path / "base", "mistral")
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA"}
    monkeypatch.setitem(sys.modules, "peft", None)
    for place in (folder, base):
        (place / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(LoadError, match="pip install peft"):
            _score(str(place))
