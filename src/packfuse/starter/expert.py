"""The optional expert model: where the installed data package keeps it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from packfuse.errors import StarterError
from packfuse.extras import install_command

EXPERT = "kube-client-3m"
"""Name of the model and of its folder in the data package."""
EXPERT_LICENSE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
"""Short name of the model's license, and the URL of its text."""
EXPERT_TERMS = f"{EXPERT} and its training data are under the Apache License 2.0."

_PACKAGE = "packfuse_expert_kube"


def find_expert() -> Path | None:
    """The model's folder in the installed data package, or None if the package is not installed.

    The package is located by its import name; none of its code runs.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location) / EXPERT
        if (folder / "config.json").is_file():
            return folder
    return None


def expert_path() -> Path:
    """The model's folder in the installed data package.

    Raises:
        StarterError: The data package is not installed.
    """
    folder = find_expert()
    if folder is None:
        raise StarterError(
            f"the expert {EXPERT} is not installed: its weights are in the package "
            f"{_PACKAGE.replace('_', '-')}",
            hint=install_command("expert"),
        )
    return folder
