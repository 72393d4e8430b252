"""`packfuse serve` as a process of its own, from its first line to its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from packfuse.cli import app
from packfuse.settings import PackConfig
from tests.support import pico
from tests.support.serving import command_running

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    made = []
    for seed, name in enumerate(("mistral", "deepseek")):
        folder = tmp_path_factory.mktemp(name)
        tokenizer = pico.real_tokenizer(name)
        pico.tiny_model(tokenizer, seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made.append(str(folder))
    return made


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running server, and its address."""
    with command_running("serve", "--port", "0", *arguments, **environment) as found:
        yield found


def ready(url: str) -> None:
    for _ in range(600):
        if httpx.get(url + "/health").status_code == 200:
            return
        threading.Event().wait(0.1)
    raise AssertionError(httpx.get(url + "/health").text)


def models(folders: Sequence[str]) -> list[str]:
    return [part for folder in folders for part in ("--model", folder)]


def test_running_answers_finish_when_the_server_ends(folders: list[str]) -> None:
    with served(*models(folders), "--name", "mine", "--max-rows", "3") as (process, url):
        ready(url)
        assert httpx.get(url + "/v1/models").json()["data"][0]["id"] == "mine"
        body = {"messages": MESSAGES, "max_tokens": 40, "stream": True}
        with httpx.stream("POST", url + CHAT, json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_several_packs_of_one_file_share_their_members(folders: list[str], tmp_path: Path) -> None:
    file = tmp_path / "packs.yaml"
    one, two = folders
    file.write_text(
        f"packs:\n  both: {{members: ['{one}', '{two}']}}\n"
        f"  alone: {{members: ['{one}'], fusion: unite}}\n"
    )
    configs = PackConfig.read_several(file)
    assert configs is not None
    from packfuse import Pack

    packs = Pack.several(configs, progress=False)
    assert packs["both"].members[0].model is packs["alone"].members[0].model
    with served("--pack", str(file), PACKFUSE_API_KEY="k") as (_, url):
        ready(url)
        key = {"Authorization": "Bearer k"}
        assert httpx.get(url + "/v1/models").status_code == 401
        for name, pack in packs.items():
            body: dict[str, Any] = {"model": name, "prompt": "Hello", "max_tokens": 5}
            found = httpx.post(url + "/v1/completions", json=body, headers=key, timeout=60).json()
            expected = pack.generate("Hello", max_new_tokens=5)
            assert found["choices"][0]["text"] == expected.text
            assert found["fusion"]["fusion"] == expected.record.fusion


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("packs: {}", "maps names to packs"),
        ("packs: [1]", "maps names to packs"),
        ("packs: {a: {members: [x]}}\nfusion: unite", "nothing stands beside"),
        ("packs: {a: {members: []}}", "a: members"),
        ("packs: {a: 3}", "does not hold a mapping"),
        ("packs: {a: {members: [x], trust_remote_code: true}}", "trust_remote_code"),
    ],
)
def test_unusable_files_are_refused_before_anything_is_loaded(
    tmp_path: Path, text: str, reason: str
) -> None:
    file = tmp_path / "packs.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["serve", "--pack", str(file)], env={"COLUMNS": "400"})
    assert result.exit_code == 1
    assert reason in result.output


def test_an_address_in_use_is_refused(folders: list[str]) -> None:
    with served(*models(folders)) as (_, url):
        port = url.rpartition(":")[2]
        result = CliRunner().invoke(app, ["serve", *models(folders), "--port", port])
        assert result.exit_code == 1
        assert f"cannot listen on 127.0.0.1:{port}" in result.output


def test_an_open_server_without_a_key_is_warned_about(folders: list[str]) -> None:
    command = [sys.executable, "-m", "packfuse", "serve", "--port", "0", "--host", "0.0.0.0"]  # noqa: S104
    process = subprocess.Popen([*command, *models(folders)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    process.kill()
    process.communicate()
    assert "--api-key" in first
