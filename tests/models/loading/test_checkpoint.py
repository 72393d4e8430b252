"""Members that do not fit on a device are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from packfuse import Pack
from packfuse.errors import LoadError
from packfuse.models import devices
from packfuse.models.loading import checkpoint
from packfuse.models.loading.checkpoint import SPARE, check_headroom, weights_on
from packfuse.models.loading.source import Source
from packfuse.settings import LoadSettings, MemberSettings
from tests.support import pico

CUDA = torch.device("cuda:0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pico.save_tiny(tmp_path, "mistral")


def source(folder: Path) -> Source:
    return Source.of(MemberSettings(model=str(folder)), LoadSettings())


def test_weights_are_measured_without_being_loaded(folder: Path) -> None:
    parameters = pico.tiny_pair("mistral")[0].num_parameters()
    for dtype, size in (("auto", 4), ("float32", 4), ("bfloat16", 2)):
        found = weights_on(source(folder), {"device_map": "cuda:0", "dtype": dtype})
        assert found == (CUDA, size * parameters)


@pytest.mark.parametrize("place", [None, "cpu", "auto", {"": 0}])
def test_other_places_are_not_looked_at(folder: Path, place: object) -> None:
    assert weights_on(source(folder), {"device_map": place, "dtype": "auto"}) is None


def test_sizes_that_are_not_known_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    how = {"device_map": "cuda:0", "dtype": "auto"}
    assert weights_on(source(folder), {**how, "quantization_config": object()}) is None
    assert weights_on(source(tmp_path / "nowhere"), how) is None


def test_members_of_a_device_have_to_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {CUDA: 4 * 2**30, torch.device("cuda:1"): 2**30}
    monkeypatch.setattr(checkpoint, "free_memory", free.__getitem__)
    one = int(2**31 / SPARE)
    check_headroom({"a": (CUDA, one), "b": (CUDA, one)})
    check_headroom({"a": (CUDA, one), "b": (torch.device("cuda:1"), one // 3)})
    with pytest.raises(
        LoadError, match=r"cuda:0 has 4\.0 GiB of free memory.*'a' 1\.9 GiB, 'b' 3\.8"
    ):
        check_headroom({"a": (CUDA, one), "b": (CUDA, 2 * one)})


def test_nothing_is_loaded_then(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_unavailable", lambda _: None)
    monkeypatch.setattr(checkpoint, "free_memory", lambda _: 1000)
    with pytest.raises(LoadError, match=r"cuda has 0\.0 GiB of free memory"):
        Pack.from_pretrained([str(folder)], device_map="cuda", progress=False)
