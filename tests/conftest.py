"""What every test shares: no time limits, tokenizers loaded once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support import pico

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

# Where every landing runs the same examples, half as many do.
settings.register_profile("packfuse", deadline=None)
settings.register_profile("landing", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("landing" if "CI" in os.environ else "packfuse")


@pytest.fixture(scope="session")
def tokenizers() -> Mapping[str, PreTrainedTokenizerFast]:
    """The tokenizers that come out of packages, by name."""
    return pico.real_tokenizers()


@pytest.fixture
def loud_afterwards() -> Iterator[None]:
    """Commands quieten transformers; the other tests want it as it was."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(
    params=[
        *pico.PACKAGED,
        *(pytest.param(name, marks=pytest.mark.starter) for name in pico.STARTER),
    ]
)
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Each tokenizer at hand in turn; those of the starter pack are marked `starter`."""
    if request.param in pico.PACKAGED:
        return pico.real_tokenizer(request.param)
    folders: dict[str, Path] = request.getfixturevalue("starter_folders")
    return pico.folder_tokenizer(folders[request.param])
