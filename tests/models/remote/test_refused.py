"""Servers that cannot be members: clear errors before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError, LoadError
from packfuse.models.loading.gguf.tokenizer import gguf_tokenizer
from packfuse.text.vocabulary import Vocabulary
from tests.support.replay import Answer, answering

CAPPED = "Requested sample logprobs of 1000000, which is greater than max allowed: 0"


def load(url: str, gguf: Path, **more: Any) -> Pack:
    """A pack of a local model, which is not there, and a member at the address."""
    settings = {"url": url, "tokenizer": str(gguf), "name": "served", **more}
    return Pack.from_pretrained(["/nowhere/model", settings], progress=False)


def owned_by(owner: str) -> Answer:
    """A list with one model."""
    return 200, {"data": [{"id": "m", "owned_by": owner, "max_model_len": 256}]}


def test_a_server_without_token_ids(gguf: Path) -> None:
    """Such as Ollama's, which lists its models as OpenAI does."""

    def answer(method: str, path: str, body: Any) -> Answer:
        return owned_by("library") if path == "/v1/models" else (404, {})

    with (
        answering(answer) as url,
        pytest.raises(LoadError, match=r"no server of llama.cpp, vllm, sglang, packfuse answers"),
    ):
        load(url, gguf)


def test_a_server_that_names_no_candidates(gguf: Path) -> None:
    vocabulary = Vocabulary(gguf_tokenizer(gguf))

    def answer(method: str, path: str, body: Any) -> Answer:
        answers: dict[str, Answer] = {
            "/v1/models": owned_by("vllm"),
            "/v1/completions": (400, {"error": {"message": CAPPED}}),
        }
        if path == "/tokenize":
            return 200, {"tokens": vocabulary.encode(body["prompt"])}
        return answers.get(path, (404, {}))

    with (
        answering(answer) as url,
        pytest.raises(ConfigError, match=r"names at most 0 .*--max-logprobs"),
    ):
        load(url, gguf)


def test_a_page_that_is_no_server_of_models(gguf: Path) -> None:
    with answering(lambda *_: (200, "<html>")) as url, pytest.raises(LoadError, match="no server"):
        load(url, gguf)


def test_an_adapter_of_sglang(gguf: Path) -> None:
    """It is asked for by another field, which is not written."""
    base, adapter = owned_by("sglang")[1]["data"][0], {"id": "a", "parent": "m"}

    def answer(method: str, path: str, body: Any) -> Answer:
        return (200, {"data": [base, adapter]}) if path == "/v1/models" else (404, {})

    with answering(answer) as url, pytest.raises(LoadError, match="'a' is an adapter"):
        load(url, gguf, model="a")
