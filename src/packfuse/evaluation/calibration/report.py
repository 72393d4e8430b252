"""The result of a calibration: what was decided, the expected gain, and the advice."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from packfuse.evaluation.reports.intervals import Figure

Decision = Literal["calibrated", "kept", "alone", "refused"]


class CalibrationReport(BaseModel):
    """What a calibration found, as plain JSON types.

    Attributes:
        decision: "calibrated" (the fitted weighting), "kept" (the pack as it is), "alone" (all the
            weight for the best member) or "refused" (nothing was fitted; the pack as it is).
        questions: Number of distinct questions that counted.
        best: The member with the lowest loss.
        bits_per_byte: Loss on the right answers by member, of the pack "as it is", and
            "calibrated": of questions that were not fitted to.
        gain: By the last two, the bits per byte saved against the best member.
        accuracy: By the last two, the accuracy minus the best member's; empty without options.
        fitted: The weighting that was fitted to all questions; None if nothing was fitted.
        weighting: The weighting that was decided for; None for the pack's own.
        advice: What to do, in a sentence.
        notes: Questions that did not count, and why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision: Decision
    questions: int
    best: str | None = None
    bits_per_byte: dict[str, float] = {}
    gain: dict[str, Figure] = {}
    accuracy: dict[str, Figure] = {}
    fitted: dict[str, Any] | None = None
    weighting: dict[str, Any] | None = None
    advice: str
    notes: list[str] = []

    def lines(self) -> list[str]:
        """The figures in words, for a screen or the head of a file."""
        found = [f"Calibration on {self.questions} questions: {self.advice}"]
        if self.bits_per_byte:
            shown = ", ".join(f"{name} {bits:.4f}" for name, bits in self.bits_per_byte.items())
            found.append(f"bits per byte: {shown}")
        for name, figure in self.gain.items():
            found.append(f"{name}, saved against {self.best}: {_interval(figure)} bits per byte")
        for name, figure in self.accuracy.items():
            found.append(f"{name}, accuracy minus that of {self.best}: {_interval(figure)}")
        return [*found, *self.notes]


def _interval(figure: Figure) -> str:
    return f"{figure.value:+.4f} ({figure.low:+.4f} to {figure.high:+.4f})"
