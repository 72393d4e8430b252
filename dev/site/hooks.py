"""Hooks of mkdocs: pages that are made from the repository, and links to its files.

The pages in `docs/` read well in the repository, and their links are those of the repository.
Here they become links of the site; files that are no page are linked in the repository, if
`[project.urls]` of pyproject.toml has its address. Everything else on the site is made from its
one source: the record from its pydantic models, methods from their classes, the API from its
docstrings, notebooks from their cells.
"""

from __future__ import annotations

import re
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING

from generated import generated_pages
from mkdocs.structure.files import File
from repository import PAGES, ROOT, address, site_uri

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the repository at the top of all pages."""
    config.repo_url = address()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in `docs/`."""
    for path, uri in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    for uri, content in generated_pages():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site, outside of code."""
    uri = page.file.src_uri
    repository_path = {site: path for path, site in PAGES.items()}.get(uri, f"docs/{uri}")

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups(default="")
        path = normpath(join(dirname(repository_path), target))
        place = site_uri(path)
        if files.get_file_from_path(place):
            return f"{image}[{text}]({relpath(place, dirname(uri) or '.')}{anchor})"
        if not (ROOT / path).exists():
            return found[0]  # mkdocs reports it
        source = config.repo_url
        return f"[{text}]({source}/blob/main/{path}{anchor})" if source else text

    parts = _FENCED.split(markdown)
    for index, part in enumerate(parts):
        parts[index] = _runnable(part) if index % 2 else _LINK.sub(link, _cells(part))
    return "".join(parts)


def _cells(text: str) -> str:
    """Code in cells of tables as Python-Markdown reads it, where a bar in code ends no cell."""

    def row(found: re.Match[str]) -> str:
        return re.sub(r"`[^`\n]*`", lambda code: code[0].replace(r"\|", "|"), found[0])

    return re.sub(r"^\|.*$", row, text, flags=re.MULTILINE)


def _runnable(block: str) -> str:
    """A fenced block without the mark of snippets that tests do not run."""
    return block.replace("```python no-run\n", "```python\n", 1)
