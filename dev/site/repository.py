"""The address of the repository, and which of its files are pages of the site, and where."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "cookbooks/README.md": "notebooks/index.md",
    "dev/log.md": "lab-book.md",
    "integrations/langchain/README.md": "langchain.md",
    "integrations/llama_index/README.md": "llama-index.md",
    "packages/expert/packfuse_expert_kube/kube-client-3m/README.md": "expert.md",
    "training/README.md": "training.md",
}
"""Pages outside of `docs/`, by their path in the repository, with their place on the site."""

COOKBOOKS = sorted((ROOT / "cookbooks").glob("*.py"))
"""Scripts that are notebooks as well, `notebooks/NAME.ipynb`."""


def address() -> str | None:
    """The address of the repository, from `[project.urls]`; None until one is written there."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    urls: dict[str, str] = tomllib.loads(text)["project"].get("urls", {})
    return urls.get("Repository")


def site_uri(path: str) -> str:
    """Where a file of the repository is on the site, if it is there."""
    for script in COOKBOOKS:
        if path in (f"cookbooks/{script.name}", f"notebooks/{script.stem}.ipynb"):
            return f"notebooks/{script.stem}.md"
    return PAGES.get(path) or path.removeprefix("docs/")
