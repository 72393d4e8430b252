"""The README keeps its word: its example runs, and its file map is the territory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def mapped() -> list[Path]:
    """The modules that the file map lists, in its order."""
    text = README[README.index("## File map") :]
    first, *lines = blocks("", text)[0].splitlines()
    folders, found = [Path(first)], []
    for line in filter(None, lines):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [folders[depth - 1] / name]
        if not name.endswith("/"):
            found.append(folders[depth])
            assert line.split(maxsplit=1)[1:], f"{name} is not explained"
    return found


def test_the_file_map_lists_every_module_and_no_other():
    listed = mapped()
    there = {path.relative_to(ROOT) for path in (ROOT / "src" / "packfuse").rglob("*.py")}
    assert set(listed) == there
    assert len(listed) == len(there)


@pytest.mark.usefixtures("starter_folders")
def test_the_example_runs(tmp_path: Path):
    example = blocks("python")[0]
    assert len(example.strip().splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(" Paris")
    assert re.search(r"\{'SmolLM2-135M-Instruct': 0\.\d+, 'gemma-3-270m': 0\.\d+\}", done.stdout)
    assert "blue" in lines[-1]


def test_every_example_is_python():
    for number, example in enumerate(blocks("python")):
        compile(example, f"README example {number}", "exec")


def test_links_to_files_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_links_within_lead_to_headings():
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
