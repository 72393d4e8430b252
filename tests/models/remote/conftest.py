"""A tiny model as a GGUF file, and llama.cpp's server that runs it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.models.member import Read
from packfuse.models.remote.client import Client
from tests.support.llama_server import LlamaServer, llama_server
from tests.support.replay import replayed
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


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers as the exchanges of the module say."""
    with replayed(request.module.EXCHANGES) as found:
        yield found


@pytest.fixture(scope="module")
def folder(default_folders: dict[str, Path]) -> Path:
    """The model of the exchanges."""
    return default_folders["SmolLM2-135M-Instruct"]


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bodies of the requests that are posted from now on."""
    sent: list[Any] = []
    post = Client.post

    def counted(client: Client, path: str, body: Any) -> Any:
        sent.append(body)
        return post(client, path, body)

    monkeypatch.setattr(Client, "post", counted)
    return sent


@functools.cache
def whole_distributions(folder: Path, text: str) -> torch.Tensor:
    """The distributions of a model in this process, after every token of a text."""
    settings = {"model": str(folder), "dtype": "float32"}
    (member,) = Pack.from_pretrained([settings], progress=False).members
    ids = member.vocabulary.encode(text)
    return member.read([Read(member.open(), ids, len(ids))])[0]
