"""Packs for the tests: the real starter pack, a tiny random one, and a scripted one."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from packfuse import Pack
from tests import packs


@pytest.fixture(scope="session")
def starter() -> Pack:
    """SmolLM2 and Gemma."""
    return Pack.starter(progress=False)


@pytest.fixture(scope="session")
def tiny() -> Pack:
    """Random models with real tokenizers: quick, and no wiser than dice.

    Without a prefix cache, so that a repeated call has the same usage.
    """
    return packs.tiny_pack(packs.tiny_members(["deepseek", "mistral"]), prefix_cache=0)
