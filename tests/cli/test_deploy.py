"""`packfuse deploy` and `packfuse batch --workers`: what is refused before a cluster is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from packfuse.cli import app
from packfuse.extras import install_command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pack.yaml").write_text("members: [some/model]\n")
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    return tmp_path


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 1, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize("command", ["deploy", "batch"])
def test_an_error_names_the_extra(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("packfuse.ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    pack = str(folder / "pack.yaml")
    batch = [str(folder / "in.jsonl"), str(folder / "out.jsonl"), "--workers", "2", "--pack", pack]
    found = refused(command, *([pack] if command == "deploy" else batch))
    assert install_command("ray") in found
    assert not (folder / "out.jsonl").exists()


def test_options_that_contradict_each_other_are_refused(folder: Path) -> None:
    files = [str(folder / "in.jsonl"), str(folder / "out.jsonl")]
    pack = str(folder / "pack.yaml")
    assert "--max-replicas 1 is less than --min-replicas 2" in refused(
        "deploy", pack, "--min-replicas", "2", "--max-replicas", "1"
    )
    assert "cannot read" in refused("deploy", str(folder / "none.yaml"))
    assert "name it with --pack" in refused("batch", *files, "--workers", "2", "--model", "x")
    assert "--ray-address has no effect" in refused("batch", *files, "--ray-address", "auto")
