"""A small expert that comes with the package: a model that knows one library and no more."""

from __future__ import annotations

from pathlib import Path

EXPERT = "kube-client-3m"
"""Its name, and that of its folder."""
EXPERT_LICENSE = ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
"""Short name of its license, and the text."""
EXPERT_TERMS = f"{EXPERT} is under the Apache License 2.0, and so is what it was trained on."


def expert_path() -> Path:
    """The folder of the expert: a model that transformers loads, with its model card."""
    return Path(__file__).parent / EXPERT
