"""The pack of most tests."""

from __future__ import annotations

import pytest

from packfuse import Pack
from tests.support import packs


@pytest.fixture(scope="session")
def tiny() -> Pack:
    """Random models with real tokenizers: fast, with random answers.

    Without a prefix cache, so that a repeated call has the same usage.
    """
    return packs.tiny_pack(packs.tiny_members(["deepseek", "mistral"]), prefix_cache=0)
