"""What came of determining a pack: every candidate with its figures and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.intervals import Figure
from packfuse.settings import PackConfig

WITHIN = 0.1
"""How far below the best model a candidate may be: UniTE's 10 %."""
LENGTH_RATIO = 2.0
"""How much longer than the best model's its answers may be: UniTE's factor."""


class Candidate(BaseModel):
    """One model and what became of it.

    Attributes:
        name: Short name.
        model: Hub id, folder or GGUF file.
        score: On the development questions: accuracy, or bits per byte for plain text.
        bits_per_byte: Loss on the right answers; None where answers are written.
        length: Mean characters of its answers; None where nothing is written.
        gain: On the held-back questions: how much better the pack is with it than without, in
            bits per byte saved, or accuracy; None if it did not come to that.
        stays: Whether it is in the pack.
        reason: Why, or why not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str
    score: float | None = None
    bits_per_byte: float | None = None
    length: float | None = None
    gain: Figure | None = None
    stays: bool = False
    reason: str = ""


class Determination(BaseModel):
    """Which models make the pack, and how it is run.

    Attributes:
        source: The questions.
        measure: What `Candidate.score` is.
        development: Questions to choose by.
        held_back: Questions to verify by.
        candidates: Best first; those that could not be measured last.
        setting: The pack's fitted setting, as plain JSON.
        config: The pack.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    measure: Literal["accuracy", "bits per byte"]
    development: int
    held_back: int
    candidates: list[Candidate]
    setting: dict[str, Any]
    config: PackConfig


@dataclass(frozen=True, slots=True)
class DetermineLimits:
    """Who may join.

    Attributes:
        within: Largest relative distance to the best model's score.
        length_ratio: Largest ratio of mean answer lengths, the longer over the shorter.
        certain: Whether a gain counts only if its 95 % interval excludes zero.
    """

    within: float = WITHIN
    length_ratio: float = LENGTH_RATIO
    certain: bool = False


def commented(found: Determination) -> str:
    """The reasons and the measured table, as YAML comments to stand before the pack."""
    lines = [
        f"Determined on {found.source}: {found.development} questions to choose by, "
        f"{found.held_back} held back to verify.",
        "",
        f"{'model':32} {found.measure:>13} {'bits/byte':>9} {'length':>7}  stays",
    ]
    for one in found.candidates:
        figures = [
            f"{'-' if one.score is None else f'{one.score:.4f}':>13}",
            f"{'-' if one.bits_per_byte is None else f'{one.bits_per_byte:.4f}':>9}",
            f"{'-' if one.length is None else f'{one.length:.0f}':>7}",
        ]
        lines.append(f"{one.name:32} {' '.join(figures)}  {'yes' if one.stays else 'no'}")
        lines.append(f"    {one.reason}")
    return "".join(f"# {_one_line(line)}".rstrip() + "\n" for line in lines)


def _one_line(text: str) -> str:
    """A text that stays in its comment: what a library says may have lines and control codes."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
