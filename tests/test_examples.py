"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
from collections.abc import Iterator

import pytest

import packfuse

NEEDS = {"packfuse.ray.": "ray"}
"""Packages that the dev extra does not install, by the modules that import them."""


def modules() -> Iterator[str]:
    """Every module of the package that can be imported, but the program itself."""
    for info in pkgutil.walk_packages(packfuse.__path__, "packfuse."):
        needed = [package for start, package in NEEDS.items() if info.name.startswith(start)]
        if info.name != "packfuse.__main__" and all(map(importlib.util.find_spec, needed)):
            yield info.name


FINDER = doctest.DocTestFinder(exclude_empty=True)


def examples() -> list[doctest.DocTest]:
    found = [test for name in modules() for test in FINDER.find(importlib.import_module(name))]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_shows_what_it_says(
    example: doctest.DocTest, request: pytest.FixtureRequest
) -> None:
    example.globs["getfixture"] = request.getfixturevalue
    failed, attempted = doctest.DocTestRunner(verbose=False).run(example)
    skipped = all(doctest.SKIP in one.options for one in example.examples)
    assert failed == 0
    assert attempted or skipped


def test_examples_are_found() -> None:
    assert len(examples()) > 20
