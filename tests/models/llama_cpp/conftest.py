"""Tiny models as GGUF files, which llama.cpp runs in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from packfuse.models.llama_cpp import LlamaCppMember, is_installed
from packfuse.models.loading import load_member
from packfuse.models.member import Member
from packfuse.settings import LoadSettings, MemberSettings
from packfuse.testing import MemberLaws
from tests.support.starter_files import write_gguf

SCALE = 0.5
"""Standard deviation of the weights: with 1, rounding to float16 changes what is likely."""


@pytest.fixture(autouse=True, scope="session")
def _installed() -> None:
    if not is_installed():
        pytest.skip("llama-cpp-python is not installed; `make test-llama-cpp` installs it")


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with float32 weights."""
    path = tmp_path_factory.mktemp("in_place") / "tiny.gguf"
    write_gguf(path, 0, eot=2, context=2048, scale=SCALE)
    return path


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, with another vocabulary."""
    path = tmp_path_factory.mktemp("in_place") / "other.gguf"
    write_gguf(path, 7, eot=2, context=2048, scale=SCALE, more=[("llamas", 1)])
    return path


class LlamaCppLaws(MemberLaws):
    """The laws of members, for the fixture `member` of a module."""

    ids = tuple(range(60, 72))

    @pytest.fixture(autouse=True)
    def _member(self, member: LlamaCppMember) -> None:
        self._own = member

    def member(self) -> Member:
        return self._own


def opened(path: Path, **settings: object) -> LlamaCppMember:
    """A member that llama.cpp runs."""
    entry = MemberSettings.check({"model": str(path), "engine": "llama.cpp", **settings})
    found = load_member(path.stem, entry, LoadSettings())
    assert isinstance(found, LlamaCppMember)
    return found


@pytest.fixture
def member(gguf: Path) -> LlamaCppMember:
    """A member of its own for every test."""
    return opened(gguf)


@pytest.fixture(scope="session")
def expanded(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """The same model with its weights expanded, which transformers runs."""
    entry = MemberSettings(model=str(gguf), engine="transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_member("tiny", entry, LoadSettings())
