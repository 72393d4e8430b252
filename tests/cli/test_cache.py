"""`packfuse cache` shows what is there, and removes what is named and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

from packfuse.cli import app
from packfuse.paths import CACHE_VARIABLE

FILES = {
    "starter/model-a/model.safetensors": 3_000_000,
    "starter/model-a/deep/er/config.json": 10,
    "starter/model-b/model.safetensors": 2_000_000,
    "starter/.lock": 0,
    "gguf/0123/model.safetensors": 1_000_000,
    "gguf/.lock": 0,
    "alignments/bytes-1.safetensors": 500,
    "alignments/bytes-2.safetensors": 500,
    "old-map.npz": 7,
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    for name, count in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(count))
    (root / "gguf" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(bytes(100))
    monkeypatch.setenv(CACHE_VARIABLE, str(root))
    return root


def cache(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["cache", *arguments])


def document(*arguments: str) -> Any:
    result = cache(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_what_is_kept_is_counted_by_kind(root: Path) -> None:
    found = document()
    assert (found["folder"], found["removed"]) == (str(root), False)
    sizes = {str(Path(one["path"]).relative_to(root)): one["nbytes"] for one in found["kept"]}
    assert sizes.pop("gguf/linked") < 1000
    assert sizes == {
        "starter/model-a": 3_000_010,
        "starter/model-b": 2_000_000,
        "gguf/0123": 1_000_000,
        "alignments/bytes-1.safetensors": 500,
        "alignments/bytes-2.safetensors": 500,
        "old-map.npz": 7,
    }
    shown = " ".join(cache().stdout.split())
    assert "starter 2 5 MB models of the starter packs" in shown
    assert "alignments 2 1 kB" in shown
    assert "skill" not in shown
    (root / "gguf" / "0123" / "packfuse.json").write_text('{"path": "/models/a.gguf"}')
    assert "gguf/0123 of /models/a.gguf" in " ".join(cache("gguf").stdout.split())
    listed = " ".join(cache("starter").stdout.split())
    assert "starter/model-a" in listed
    assert "alignments" not in listed


def test_only_what_is_named_is_removed(root: Path, tmp_path: Path) -> None:
    found = document("gguf", "alignments", "--remove")
    assert found["removed"]
    assert len(found["kept"]) == 4
    assert left(root) == {name for name in FILES if not name.startswith("alignments")} - {
        "gguf/0123/model.safetensors"
    }
    assert (tmp_path / "elsewhere" / "file").exists()
    assert cache("--remove-all").exit_code == 0
    assert left(root) == {"starter/.lock", "gguf/.lock"}
    assert document()["kept"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--remove"], "--remove needs the kinds"),
        (["starter", "--remove-all"], "--remove-all names all kinds"),
        (["start"], "nothing of the kind 'start' is kept .*starter"),
    ],
)
def test_what_would_surprise_is_refused(root: Path, arguments: list[str], words: str) -> None:
    result = cache(*arguments)
    assert result.exit_code == 1
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(" ".join(f"{result.stderr}".split()))
    assert left(root) == set(FILES)


def test_models_that_are_being_prepared_stay(root: Path) -> None:
    with FileLock(root / "starter" / ".lock"):
        result = cache("--remove-all")
        assert result.exit_code == 1
        assert "another process prepares models" in " ".join(result.stderr.split())
        assert left(root) == set(FILES)
        assert cache("gguf", "--remove").exit_code == 0


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "none"))
    assert document("--remove-all")["kept"] == []
    assert cache().exit_code == 0
    assert not (tmp_path / "none").exists()
