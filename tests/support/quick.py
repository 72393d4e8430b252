"""Fewer cases of a long test where every landing runs it; the slow run has them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick(cases: Iterable[Any], count: int) -> list[Any]:
    """The cases of `pytest.mark.parametrize`, of which those after `count` are marked as slow."""
    first = list(cases)
    rest = [pytest.param(case, marks=pytest.mark.slow) for case in first[count:]]
    return first[:count] + rest
