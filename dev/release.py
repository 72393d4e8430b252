"""Builds all packages, checks them, and installs them into empty environments.

    python dev/release.py                                         # build and check, into dist/
    python dev/release.py --python python3.11 --python python3.13     # and install with these

What has to hold before a release: the files are complete and their metadata is valid; the versions
are those of `packfuse.__version__`, of CITATION.cff and of the tag; the wheels can be installed
together; `packfuse --help` answers without torch.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import timeit
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOGETHER = (".", "integrations/langchain", "integrations/llama_index")
"""Packages that are released together, with one version."""
PACKAGES = (*TOGETHER, "packages/expert")
TOOLS = ("build", "twine", "check-wheel-contents")
HEAVY = ("numpy", "scipy", "torch", "transformers")
"""What `packfuse --help` does without."""

MODULES = "packfuse", "langchain_packfuse", "llama_index.llms.packfuse", "packfuse_expert_kube"
HELP = f"""
import contextlib, io, json, sys
from packfuse.cli import main
sys.argv = ["packfuse", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    main()
assert "determine" in out.getvalue(), out.getvalue()
print(json.dumps([len(sys.modules), [name for name in {HEAVY} if name in sys.modules]]))
"""


def version() -> str:
    """The version that the source names."""
    tree = ast.parse((ROOT / "src" / "packfuse" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise SystemExit("src/packfuse/__init__.py has no __version__")


def problems(own: str, tag: str | None) -> list[str]:
    """Places that name another version than the source."""
    found = []
    if tag is not None and tag != f"v{own}":
        found.append(f"the tag is {tag}, not v{own}")
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    if cited is None or cited[1] != own:
        found.append(f"CITATION.cff does not name version {own}")
    heading = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if heading is None or heading[1] != own:
        found.append(f"the first heading of CHANGELOG.md is not [{own}]")
    return found


def address_problems() -> list[str]:
    """Addresses of a repository that not all packages name, `packfuse` first."""
    named = {package: _urls(package).get("Repository") for package in PACKAGES}
    return [
        f"[project.urls] of {package} names {found}, and that of packfuse {named['.']}"
        for package, found in named.items()
        if found != named["."]
    ]


def _urls(package: str) -> dict[str, str]:
    text = (ROOT / package / "pyproject.toml").read_text(encoding="utf-8")
    urls: dict[str, str] = tomllib.loads(text)["project"].get("urls", {})
    return urls


def run(*command: object) -> str:
    """Run a command; its output.

    Raises:
        SystemExit: if it fails.
    """
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(parts)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def environment(python: str, folder: Path) -> Path:
    """A new environment; its Python."""
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def build(out: Path, own: str) -> list[Path]:
    """Build every package from its source archive, and check the files; the wheels."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tools = environment(sys.executable, Path(folder))
        run(tools, "-m", "pip", "install", "--quiet", *TOOLS)
        for package in PACKAGES:
            run(tools, "-m", "build", "--outdir", out, ROOT / package)
        files = sorted(out.iterdir())
        print(run(tools, "-m", "twine", "--no-color", "check", "--strict", *files))
        wheels = [path for path in files if path.suffix == ".whl"]
        print(run(tools.with_name("check-wheel-contents"), *wheels))
    named = [path.name for path in files if f"-{own}" in path.name]
    if len(named) < 2 * len(TOGETHER) or len(files) != 2 * len(PACKAGES):
        raise SystemExit(f"not all packages have version {own}: {[path.name for path in files]}")
    return wheels


def install(python: str, wheels: Sequence[Path], index: str | None) -> None:
    """Install the wheels into an empty environment, and use them."""
    with tempfile.TemporaryDirectory() as folder:
        own = environment(python, Path(folder))
        pip = (own, "-m", "pip", "install", "--quiet")
        run(*pip, *(["torch", "--index-url", index] if index else ["torch"]))
        run(*pip, *wheels)
        run(own, "-m", "pip", "check")
        modules, heavy = json.loads(run(own, "-c", HELP))
        if heavy:
            raise SystemExit(f"packfuse --help imports {', '.join(heavy)}")
        run(own, "-W", "error::DeprecationWarning:packfuse", "-c", f"import {', '.join(MODULES)}")
        program = own.with_name("packfuse")
        shown = run(program, "--version").strip()
        took = min(timeit.repeat(lambda: run(program, "--help"), number=1))
        print(
            f"{run(own, '--version').strip()}: {shown}; --help imports {modules} modules, "
            f"{took:.2f} s"
        )


def main() -> None:
    """Build, check, install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", action="append", default=[], help="a Python to install with")
    parser.add_argument("--torch-index", help="an index with CPU builds of torch")
    parser.add_argument("--tag", help="the tag of the release; a branch is not compared")
    options = parser.parse_args()
    own = version()
    tag = options.tag if options.tag and options.tag.startswith("v") else None
    if wrong := problems(own, tag) + address_problems():
        raise SystemExit("\n".join(wrong))
    wheels = build(options.out, own)
    for python in options.python:
        install(python, wheels, options.torch_index)


if __name__ == "__main__":
    main()
