"""The notebooks are those of the cookbooks, run from start to end, and say what is right."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from dev import notebooks
from dev.site.repository import address

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
SCRIPTS = sorted((ROOT / "cookbooks").glob("*.py"))

LANGUAGE = {
    "What happens when a pass statement is executed?": ("nothing", "topic 'pass'"),
    "Which loop does the break statement terminate?": ("nearest", "topic 'break'"),
    "What do lambda expressions create?": ("anonymous functions?", "topic 'lambda'"),
    "Which built-in objects are considered false in truth value testing?": (
        "None",
        "topic 'truth'",
    ),
    "What does a del statement do to a name?": ("binding|unbind", "topic 'del'"),
}
DATA_SETS = {
    "Who was the first to use the iris database?": ("Fisher", "iris.rst"),
    "How many diabetes patients were measured?": ("442", "diabetes.rst"),
    "From which census was the California housing data derived?": (
        "1990",
        "california_housing.rst",
    ),
    "Where were the wines of the chemical analysis grown?": ("Italy", "wine_data.rst"),
    "When were the images of the Olivetti faces taken?": ("1992", "olivetti_faces.rst"),
}
"""Questions of the two notebooks with retrieval: what the answer and its first source match."""

EXPECTED = {
    "tour": [
        r"Rome",
        r"weight 0\.\d\d",
        r"' red'",
        r'"name": "Rome", "country": "Italy"',
        r"Paris",
    ],
    "langchain_rag": [],
    "langchain_agent": [
        r'call multiply \{"a": 17, "b": 23\}',
        r"multiply returns 391",
        r"constraint: grammar",
    ],
    "llama_index_query_engine": [],
    "llama_index_agent": [
        r'multiply\(\{"a": 6, "b": 7\}\) = 42',
        r"sunny in Paris",
        r"chosen: FunctionAgent",
        r"constraint: grammar",
    ],
}
"""What the outputs of each notebook match."""

ASKED = {"langchain_rag": LANGUAGE, "llama_index_query_engine": DATA_SETS}


def kept(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def printed(notebook: NotebookNode) -> str:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def assert_right(name: str, notebook: NotebookNode) -> None:
    """The outputs are those of a run without errors, and hold what they should."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert [out for out in outputs if out.output_type == "error"] == []
    text = printed(notebook)
    for pattern in EXPECTED[name]:
        assert re.search(pattern, text), pattern
    for question, (answer, source) in ASKED.get(name, {}).items():
        _, _, rest = text.partition(f"{question}\n")
        given, _, sources = rest.partition("\n  source: ")
        assert re.search(answer, given, re.IGNORECASE), (question, given)
        assert sources.startswith(source), (question, sources.partition("\n")[0])


def test_each_notebook_has_the_cells_of_its_cookbook() -> None:
    assert notebooks.stale() == []
    assert sorted(EXPECTED) == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("name", EXPECTED)
def test_outputs_that_are_kept_are_right(name: str) -> None:
    notebook = kept(name)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert_right(name, notebook)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_first_cell_with_code_installs(name: str) -> None:
    first = next(cell for cell in kept(name).cells if cell.cell_type == "code")
    assert f"%pip install --quiet ./{notebooks.CHECKOUT}" in first.source
    assert ("git clone" in first.source) == (address() is not None)


def test_the_first_cell_clones_the_repository_once_it_has_an_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notebooks, "address", lambda: "https://example.org/a.git")
    cells = notebooks.notebook_of(ROOT / "cookbooks" / "langchain_rag.py").cells
    install = cells[1].source.splitlines()
    assert f"    !git clone --depth 1 https://example.org/a.git {notebooks.CHECKOUT}" in install
    folder = f"./{notebooks.CHECKOUT}"
    assert f"%pip install --quiet {folder} {folder}/integrations/langchain " in install[-1]


@pytest.mark.parametrize("name", EXPECTED)
def test_models_of_your_own_are_one_line(name: str) -> None:
    lines = [line for cell in kept(name).cells for line in cell.source.splitlines()]
    assert [line for line in lines if "Pack.starter(" in line] == ["pack = Pack.starter()"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", EXPECTED)
def test_notebooks_run(name: str, tmp_path: Path, default_folders: dict[str, Path]) -> None:
    script = next(script for script in SCRIPTS if script.stem == name)
    assert_right(name, notebooks.execute(notebooks.notebook_of(script), tmp_path))
