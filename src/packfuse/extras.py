"""The optional extras of the package, and the command that installs one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packfuse.errors import ConfigError

_NAME = "packfuse"
_PARTS = {"expert": "packages/expert"}
"""Extras whose packages are in the repository."""


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """For imports that need an extra of the package.

    Args:
        extra: Its name, such as "serve".

    Raises:
        ConfigError: if something that is imported is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed", hint=install_command(extra)) from error


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation, from where it came.

    Args:
        extra: Its name, such as "serve".
    """
    origin = _origin()
    if origin is None:
        return f"pip install '.[{extra}]' in a checkout of {_NAME}"
    where = str(origin.get("url", ""))
    part = Path(_path(where), _PARTS.get(extra, ""))
    if extra in _PARTS and part.is_dir():
        return f"pip install {shlex.quote(str(part))}"
    if vcs := origin.get("vcs_info"):
        return f"pip install '{_NAME}[{extra}] @ {vcs['vcs']}+{where}@{vcs['commit_id']}'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{_path(where) or where or _NAME}[{extra}]')}"


def _origin() -> dict[str, Any] | None:
    """Where the package came from, as installers note it (PEP 610).

    Returns:
        Empty for an index of packages; None if it is not installed, or a file that is gone.
    """
    try:
        text = distribution(_NAME).read_text("direct_url.json")
        found = dict(json.loads(text)) if text else {}
    except (PackageNotFoundError, ValueError):
        return None
    path = _path(str(found.get("url", "")))
    return None if path and not Path(path).exists() else found


def _path(url: str) -> str:
    """The path of a `file:` URL; empty for other URLs."""
    return unquote(urlsplit(url).path) if url.startswith("file:") else ""
