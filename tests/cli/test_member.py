"""`packfuse member` as a process of its own."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packfuse import Pack
from packfuse.cli import app
from tests.support.member_server import card, member_process
from tests.support.small import small_pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, one = tmp_path_factory.mktemp("short"), small_pack().members[1]
    one.model.save_pretrained(path)
    one.tokenizer.save_pretrained(path)
    return path


def test_a_pack_reaches_it_by_its_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key from the environment, and until SIGTERM."""
    options = ("--threads", "1", "--dtype", "float32", "--lease", "90")
    with member_process(str(folder), *options, PACKFUSE_API_KEY="secret") as server:
        monkeypatch.setenv("PACKFUSE_SERVER_KEY", "secret")
        member = {"url": server.url, "api_key_env": "PACKFUSE_SERVER_KEY", "name": "short"}
        pack = Pack.from_pretrained([member], progress=False)
        own = Pack.from_pretrained([str(folder)], progress=False)
        one, two = (each.generate("hello the", max_new_tokens=9) for each in (pack, own))
        assert one.token_ids == two.token_ids
        assert card(server.url, Authorization="Bearer secret")["lease"] == 90
        found = CliRunner().invoke(app, ["check", "--pack", _yaml(folder, server.url)])
        assert found.exit_code == 0, found.output
        assert server.url.removeprefix("http://") in found.output
        assert "on its server" in found.output
        assert "All weights are on servers" in found.output
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) in (0, -signal.SIGTERM)


def _yaml(folder: Path, url: str) -> str:
    path = folder / "pack.yaml"
    path.write_text(f"members:\n  - url: {url}\n    api_key_env: PACKFUSE_SERVER_KEY\n")
    return str(path)


def test_a_port_in_use_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(app, ["member", "no/such-model", "--port", port])
    assert found.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in found.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["/no/such.gguf", "--port", "0"], "no file '/no/such.gguf'"),
        (["model", "--dtype", "float7", "--port", "0"], "float7"),
        (["model", "--max-cache", "much"], "'much' is not a size"),
    ],
)
def test_bad_options_are_errors(arguments: list[str], match: str) -> None:
    found = CliRunner().invoke(app, ["member", *arguments])
    assert found.exit_code == 1
    assert match in " ".join(found.output.split())


def test_a_network_without_a_key_is_warned_of() -> None:
    found = CliRunner().invoke(
        app,
        ["member", "/no/such.gguf", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104
    )
    assert "everybody who reaches 0.0.0.0 can use it" in " ".join(found.output.split())
