"""Members' colors differ for every kind of color vision, on light and dark, and can be read."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from packfuse.view.document import styles
from packfuse.view.picture import COLORS

Floats = NDArray[np.float64]
# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color
# vision deficiency", table 1, severity 1.0; they act on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
LEAST = 18.0
"""CIE76 difference: far above what can just be told apart, about 2.3."""


def linear(color: str) -> Floats:
    values = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    xyz = TO_XYZ @ rgb.clip(0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """As in WCAG 2."""
    low, high = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def palette(theme: int) -> list[str]:
    """The members' colors, on light (0) or dark (1)."""
    return [pair[theme] for pair in pairs(r"\.c\d \{ --color")]


def pairs(name: str) -> list[tuple[str, str]]:
    found = re.findall(name + r": light-dark\((#\w{6}), (#\w{6})\)", styles())
    assert found
    return found


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colors", [palette(0), palette(1)], ids=["light", "dark"])
def test_any_two_members_can_be_told_apart(colors: list[str], vision: str) -> None:
    assert len(colors) == 6
    seen = [lab(VISION[vision] @ linear(color)) for color in colors]
    near = {
        (colors[i], colors[j]): float(np.linalg.norm(seen[i] - seen[j]))
        for i, j in itertools.combinations(range(len(colors)), 2)
    }
    assert {pair: apart for pair, apart in near.items() if apart < LEAST} == {}


def test_pictures_have_the_colors_of_the_views() -> None:
    assert list(COLORS) == palette(0)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_what_is_written_can_be_read(theme: int) -> None:
    back, text, dim = (pairs(f"--{name}")[0][theme] for name in ("back", "text", "dim"))
    assert min(contrast(color, back) for color in (*palette(theme), text, dim)) >= 4.5
