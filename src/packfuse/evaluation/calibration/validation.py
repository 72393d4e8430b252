"""What a calibration gains on questions that it was not fitted to, by cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packfuse.evaluation.calibration.answers import AnswerScores, Array
from packfuse.evaluation.calibration.fit import answer_logps, fit
from packfuse.evaluation.reports.intervals import Figure, difference, in_bits

FOLDS = 10
"""Number of parts; each is predicted by a calibration fitted to the others."""

AS_IT_IS, CALIBRATED = "as it is", "calibrated"


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, what the pack's members say together, and what each says alone.

    Attributes:
        scores: What the members say at the answers' tokens.
        alone: Log-probability of each answer by each member in its own tokens, `[K, n]`, nats; if
            those spell other bytes, scaled to the number of bytes in the pack's tokens.
        gold: Index of the right answer.
        bytes: Length of each answer, `[n]`.
    """

    scores: AnswerScores
    alone: Array
    gold: int
    bytes: list[int]

    @property
    def size(self) -> int:
        """Bytes scored of the right answer."""
        return self.scores.sizes[self.gold]

    def right(self, logps: Array) -> float:
        """1 if the right answer has the most log-probability a byte, else 0."""
        return float(int(np.argmax(logps / np.array(self.bytes))) == self.gold)


@dataclass(frozen=True, slots=True)
class Validation:
    """Figures of the pack as it is, and of calibrations on questions that they were not fitted to.

    Attributes:
        best: Index of the member with the lowest loss.
        members: Bits per byte of each member alone, `[K]`.
        bits: Bits per byte, by `AS_IT_IS` and `CALIBRATED`.
        gain: Bits per byte saved against the best member.
        accuracy: Accuracy minus that of the best member; empty without a choice of answers.
    """

    best: int
    members: list[float]
    bits: dict[str, float]
    gain: dict[str, Figure]
    accuracy: dict[str, Figure]

    def is_better(self, name: str) -> bool:
        """Whether the pack has less loss than the best member, and no less accuracy, beyond noise.

        Args:
            name: `AS_IT_IS` or `CALIBRATED`.
        """
        accuracy = self.accuracy.get(name)
        return self.gain[name].low > 0 and (accuracy is None or accuracy.high >= 0)


def cross_validate(asked: Sequence[Asked], seed: int) -> Validation:
    """Predict every question by a calibration that was fitted to the questions of other parts.

    The best member is chosen on all questions, which is to its advantage.

    Args:
        asked: The questions, in random order.
        seed: Seed of the bootstrap intervals.
    """
    alone = np.array([one.alone[:, one.gold] for one in asked])
    best = int(alone.sum(0).argmax())
    sizes = [one.size for one in asked]
    systems = {AS_IT_IS: [one.scores.logp for one in asked], CALIBRATED: held_out(asked)}
    losses = {
        name: in_bits([-float(own[one.gold]) for one, own in zip(asked, logps, strict=True)])
        for name, logps in systems.items()
    }
    theirs = in_bits((-alone[:, best]).tolist())
    hits: dict[str, list[float]] = {}
    if all(len(one.bytes) > 1 for one in asked):
        hits = {
            name: [one.right(own) for one, own in zip(asked, logps, strict=True)]
            for name, logps in systems.items()
        }
    others = [one.right(one.alone[best]) for one in asked]
    return Validation(
        best=best,
        members=[sum(in_bits((-column).tolist())) / sum(sizes) for column in alone.T],
        bits={name: sum(own) / sum(sizes) for name, own in losses.items()},
        gain={name: difference(theirs, own, sizes, seed) for name, own in losses.items()},
        accuracy={
            name: difference(own, others, [1.0] * len(asked), seed) for name, own in hits.items()
        },
    )


def held_out(asked: Sequence[Asked]) -> list[Array]:
    """Log-probabilities of each question's answers, under the calibration of the other parts."""
    right = [one.scores.of_answer(one.gold) for one in asked]
    parts = np.arange(len(asked)) % min(FOLDS, len(asked))
    found: list[Array] = [np.zeros(0)] * len(asked)
    for part in np.unique(parts):
        calibration = fit([right[i] for i in np.flatnonzero(parts != part)])
        for i in np.flatnonzero(parts == part):
            found[i] = answer_logps(asked[i].scores, calibration)
    return found
