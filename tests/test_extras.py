"""The command that installs what is missing finds the package where it came from."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from packfuse.errors import ConfigError
from packfuse.extras import install_command, needs_extra


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    """An installation before all others on the path, with what an installer notes of its origin."""
    notes = folder / "site" / "packfuse-0.1.0.dist-info"
    notes.mkdir(parents=True)
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: packfuse\nVersion: 0.1.0\n")
    if origin is not None:
        (notes / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(notes.parent))


def test_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, None)
    assert install_command("serve") == "pip install 'packfuse[serve]'"


@pytest.mark.parametrize("editable", [False, True])
def test_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editable: bool) -> None:
    folder = tmp_path / "my files"
    folder.mkdir()
    origin = {"url": folder.as_uri(), "dir_info": {"editable": True} if editable else {}}
    installed(tmp_path, monkeypatch, origin)
    command = shlex.split(install_command("llama-cpp"))
    assert command == ["pip", "install", *["-e"] * editable, f"{folder}[llama-cpp]"]
    assert shlex.split(install_command("expert"))[-1] == f"{folder}[expert]"
    (folder / "packages" / "expert").mkdir(parents=True)
    assert shlex.split(install_command("expert"))[-1] == f"{folder}/packages/expert"
    shutil.rmtree(folder)
    assert install_command("ray") == "pip install '.[ray]' in a checkout of packfuse"


def test_a_wheel_and_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "packfuse-0.1.0-py3-none-any.whl"
    wheel.touch()
    installed(tmp_path / "a", monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(install_command("eval"))[-1] == f"{wheel}[eval]"
    url = "https://example.org/some/packfuse"
    vcs = {"vcs": "git", "commit_id": "0123abcd"}
    installed(tmp_path / "b", monkeypatch, {"url": url, "vcs_info": vcs})
    found = Requirement(shlex.split(install_command("eval"))[-1])
    assert (found.name, found.extras, found.url) == ("packfuse", {"eval"}, f"git+{url}@0123abcd")


def test_an_import_that_fails_names_the_command() -> None:
    missing = pytest.raises(ConfigError, match=r"^no_such_package is not installed")
    with missing as caught, needs_extra("serve"):
        __import__("no_such_package")
    assert caught.value.hint == install_command("serve")
