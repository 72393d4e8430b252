"""The cookbooks run from start to end, each in a process of its own, on the starter pack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

COOKBOOKS = Path(__file__).parents[1] / "cookbooks"

ANSWERS = {
    "Which planet is the largest?": "Jupiter",
    "How long is a year on Mercury?": "88 days",
    "Who discovered Uranus?": "Herschel",
    "What are the rings of Saturn made of?": "ice",
}

pytestmark = pytest.mark.starter


def run(name: str, *arguments: str, folder: Path) -> str:
    """What a cookbook prints, run in a folder that is not its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    command = [sys.executable, str(COOKBOOKS / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_langchain_rag(default_folders: dict[str, Path], tmp_path: Path) -> None:
    printed = run("langchain_rag.py", folder=tmp_path)
    assert all(name in printed for name in default_folders)
    hottest, red = printed.split("Why is Mars red?")
    assert re.search(r"Venus.*465.*source: planets\.md, Venus", hottest, re.DOTALL)
    assert re.search(r"rust.*source: planets\.md, Mars", red, re.DOTALL)


@pytest.mark.slow
def test_langchain_agent(default_folders: dict[str, Path], tmp_path: Path) -> None:
    printed = run("langchain_agent.py", "What is 17 times 23?", folder=tmp_path)
    assert 'call multiply {"a": 17, "b": 23}' in printed
    assert "multiply returns 391" in printed
    assert "grammar" in printed


@pytest.mark.slow
def test_llama_index_query_engine(default_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "index"
    printed = run(
        "llama_index_query_engine.py", "--folder", str(folder), "--max-new-tokens", "24",
        folder=tmp_path,
    )  # fmt: skip
    assert all(name in printed for name in default_folders)
    for question, expected in ANSWERS.items():
        assert expected in printed.split(f"\n{question}\n")[1].split("\n")[0]
    assert (folder / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "index").iterdir())


@pytest.mark.slow
def test_llama_index_agent(default_folders: dict[str, Path], tmp_path: Path) -> None:
    printed = run("llama_index_agent.py", folder=tmp_path)
    assert all(name in printed for name in default_folders)
    assert "multiply" in printed


def test_no_cookbook_goes_untested() -> None:
    tests = Path(__file__).read_text()
    assert [path.name for path in COOKBOOKS.glob("*.py") if f'"{path.name}"' not in tests] == []
