"""A tiny model as a GGUF file, and llama.cpp's server that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llama_server import LlamaServer, llama_server
from tests.support.starter_files import write_gguf


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model."""
    path = tmp_path_factory.mktemp("served") / "tiny.gguf"
    write_gguf(path, 0, eot=2, context=256)
    return path


@pytest.fixture(scope="session")
def server(gguf: Path) -> Iterator[LlamaServer]:
    """A server that no test harms."""
    with llama_server(gguf) as found:
        yield found
