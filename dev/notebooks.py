"""Makes notebooks of the cookbooks, and runs them.

python dev/notebooks.py [NAME ...]   # write notebooks/NAME.ipynb, with outputs; all without a name
python dev/notebooks.py --no-run     # the same with the outputs that are kept
python dev/notebooks.py --check      # fail if a notebook is not that of its cookbook

A cookbook is a script whose cells begin with `# %%`, or `# %% [markdown]` for text. Its docstring
is the first cell, and the commands of the docstring that install something are the second.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from dev.site.repository import address  # noqa: E402

COOKBOOKS = ROOT / "cookbooks"
NOTEBOOKS = ROOT / "notebooks"

CHECKOUT = "packfuse-checkout"
"""The folder of a clone in notebook services, until the packages are released."""

_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_of(script: Path) -> Any:
    """The cells of a cookbook, without outputs."""
    text = script.read_text(encoding="utf-8")
    head, _, rest = text.removeprefix('"""').partition('"""\n')
    title, installs, about = _docstring(head)
    cells = [_markdown(0, f"# {title}\n\n{about}".strip()), _code(1, _install(installs))]
    _, *parts = _CELL.split(rest)
    for kind, source in zip(parts[::2], parts[1::2], strict=True):
        number, text = len(cells), source.strip("\n")
        if kind:
            cells.append(_markdown(number, re.sub(r"^# ?", "", text, flags=re.MULTILINE)))
        else:
            cells.append(_code(number, _in_a_notebook(text)))
    return nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)


def _docstring(text: str) -> tuple[str, list[str], str]:
    """Title, what is installed, and the paragraphs without commands."""
    title, *paragraphs = text.strip().split("\n\n")
    commands = [
        line.strip() for part in paragraphs for line in part.splitlines() if line[:1] == " "
    ]
    installs = [line.removeprefix("pip install ") for line in commands if "pip install" in line]
    about = "\n\n".join(part for part in paragraphs if part[:1] != " ")
    return title.rstrip("."), installs, about


def _install(packages: list[str]) -> str:
    """The cell that installs what is missing, from a clone of the repository."""
    names = [name for line in packages for name in line.split()]
    listed = " ".join(re.sub(r"^\.(?=/|$)", f"./{CHECKOUT}", name) for name in names)
    clone = f"    !git clone --depth 1 {address()} {CHECKOUT}\n"
    imports = "from pathlib import Path\n"
    upload = (
        f'    if not Path("{CHECKOUT}").is_dir():\n'
        f'        raise FileNotFoundError("upload a clone of packfuse, as the folder {CHECKOUT}")\n'
    )
    return (
        f"import importlib.util\n{'' if address() else imports}\n"
        "# In a notebook service; in an environment that has packfuse, nothing is installed.\n"
        'if importlib.util.find_spec("packfuse") is None:\n'
        f"{clone if address() else upload}"
        f"    %pip install --quiet {listed}"
    )


def _in_a_notebook(source: str) -> str:
    """Code for a notebook, whose event loop runs already, and which needs no `__future__`."""
    source = source.replace("from __future__ import annotations\n\n", "", 1)
    return re.sub(r"^asyncio\.run\((.*)\)$", r"await \1", source, flags=re.MULTILINE)


def _code(number: int, source: str) -> Any:
    return nbformat.v4.new_code_cell(source, id=f"cell-{number}")


def _markdown(number: int, source: str) -> Any:
    return nbformat.v4.new_markdown_cell(source, id=f"cell-{number}")


def execute(notebook: NotebookNode, folder: Path) -> Any:
    """Run all cells in a kernel of this Python, and keep their outputs.

    Args:
        notebook: The cells; their outputs are replaced.
        folder: Where it runs.

    Raises:
        nbclient.exceptions.CellExecutionError: for a cell with an error.
    """
    client = NotebookClient(
        notebook,
        timeout=900,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(_METADATA)
    return notebook


def with_kept_outputs(notebook: NotebookNode, path: Path) -> Any:
    """The same cells with the outputs in a file, if the code is the same but for what installs.

    Raises:
        SystemExit: if it is not.
    """
    given = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kept = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    if [cell.source for cell in kept[1:]] != [cell.source for cell in given[1:]]:
        raise SystemExit(f"the code of {path.stem} is new: run it")
    for own, old in zip(given, kept, strict=True):
        own.outputs, own.execution_count = old.outputs, old.execution_count
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stale() -> list[str]:
    """Names of cookbooks whose notebook is missing or has other cells."""
    found = []
    for script in sorted(COOKBOOKS.glob("*.py")):
        path = NOTEBOOKS / f"{script.stem}.ipynb"
        if not path.exists() or sources(nbformat.read(path, 4)) != sources(notebook_of(script)):
            found.append(script.stem)
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-run", action="store_true", help="keep the outputs that are there")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(f"write again: {', '.join(stale())}" if stale() else 0)
    NOTEBOOKS.mkdir(exist_ok=True)
    for script in sorted(COOKBOOKS.glob("*.py")):
        if not arguments.names or script.stem in arguments.names:
            notebook, path = notebook_of(script), NOTEBOOKS / f"{script.stem}.ipynb"
            if arguments.no_run:
                with_kept_outputs(notebook, path)
            else:
                with TemporaryDirectory() as folder:
                    execute(notebook, Path(folder))
            nbformat.write(notebook, path)
            print(f"notebooks/{script.stem}.ipynb")


if __name__ == "__main__":
    main()
