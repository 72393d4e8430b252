"""The result of determining a pack: every candidate with its figures and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.calibration.report import CalibrationReport
from packfuse.evaluation.reports.intervals import Figure
from packfuse.settings import PackConfig
from packfuse.view.tables import html_table

WITHIN = 0.1
"""Largest relative distance to the best model's score: UniTE's 10 %."""
LENGTH_RATIO = 2.0
"""Largest ratio of mean answer lengths to the best model: UniTE's factor."""


class Candidate(BaseModel):
    """One model, its figures, and whether it is in the pack.

    Attributes:
        name: Short name.
        model: Hub id, folder or GGUF file.
        score: Accuracy on the development questions, or bits per byte for plain text.
        bits_per_byte: Loss on the right answers, bits per byte; None if answers are generated.
        length: Mean characters of the answers; None if no answers are generated.
        gain: Improvement of the pack by the candidate on the held-back questions, in bits per byte
            saved or in accuracy; None if it was not measured.
        stays: Whether the candidate is in the pack.
        reason: The reason for that.
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
    """The models of the pack, and its setting.

    Attributes:
        source: The file of the questions.
        measure: Metric of `Candidate.score`.
        development: Number of questions for the choice of models and setting.
        held_back: Number of questions for the verification.
        left_out: Lines of the file that did not count, and why: broken lines, lines without a
            usable question, repeated questions.
        candidates: Best first; candidates that could not be measured come last.
        setting: The pack's setting as plain JSON.
        config: The configuration of the pack.
        calibration: What calibrating the pack found; None for a pack of one, or if it was not
            wanted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    measure: Literal["accuracy", "bits per byte"]
    development: int
    held_back: int
    left_out: list[str] = []
    candidates: list[Candidate]
    setting: dict[str, Any]
    config: PackConfig
    calibration: CalibrationReport | None = None

    def __repr__(self) -> str:
        """The models of the pack, and the number of candidates."""
        stays = [candidate.name for candidate in self.candidates if candidate.stays]
        return f"Determination({', '.join(stays)}; of {len(self.candidates)} candidates)"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A table with one row per candidate."""
        rows = [
            [one.name, *map(_number, (one.score, one.bits_per_byte)), _answer(one), one.reason]
            for one in self.candidates
        ]
        heads = ["model", self.measure, "bits/byte", "stays", "reason"]
        return html_table(f"Candidates on {self.source}", heads, rows)


def _answer(candidate: Candidate) -> str:
    return "yes" if candidate.stays else "no"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


@dataclass(frozen=True, slots=True)
class DetermineLimits:
    """Conditions that a candidate has to meet.

    Attributes:
        within: Largest relative distance to the best model's score.
        length_ratio: Largest ratio of mean answer lengths, the longer over the shorter.
        certain: Whether a gain counts only if its 95 % interval excludes zero.
        select: Whether candidates have to meet any condition; without it all of them stay.
    """

    within: float = WITHIN
    length_ratio: float = LENGTH_RATIO
    certain: bool = False
    select: bool = True


def yaml_comments(result: Determination) -> str:
    """The figures and the reasons as YAML comments, for the head of the pack's file."""
    lines = [
        f"Determined on {result.source}: {result.development} questions to choose by, "
        f"{result.held_back} held back to verify.",
        *([f"{len(result.left_out)} lines left out:"] if result.left_out else []),
        *(f"    {line}" for line in result.left_out),
        "",
        f"{'model':32} {result.measure:>13} {'bits/byte':>9} {'length':>7}  stays",
    ]
    for candidate in result.candidates:
        figures = [
            f"{'-' if candidate.score is None else f'{candidate.score:.4f}':>13}",
            f"{'-' if candidate.bits_per_byte is None else f'{candidate.bits_per_byte:.4f}':>9}",
            f"{'-' if candidate.length is None else f'{candidate.length:.0f}':>7}",
        ]
        lines.append(f"{candidate.name:32} {' '.join(figures)}  {_answer(candidate)}")
        lines.append(f"    {candidate.reason}")
    if result.calibration:
        lines += ["", *result.calibration.lines()]
    return "".join(f"# {_one_line(line)}".rstrip() + "\n" for line in lines)


def _one_line(text: str) -> str:
    """A text on one line: errors of libraries may have line breaks and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
