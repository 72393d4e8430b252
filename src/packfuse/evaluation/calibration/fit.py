"""The convex fit of temperatures, priors and sharpness to right answers.

Let p_k be member k's distribution at a token, w_k its weight on the prompt under the pack's own
weighting ("today's weight"), T_k its temperature. The calibrated pool has the powers

    θ_k = (a · w_k + b_k) / T_k,    log p(c) = Σ_k θ_k log p_k(c) - log Σ_c' exp Σ_k θ_k log p_k(c')

so that a = 1, b = 0, T = 1 is the pack as it is. Two fits follow each other:

1. Each temperature alone: the loss of member k at power β_k = 1 / T_k. It is a log-sum-exp of
   linear functions of β_k less a linear function: convex, in one variable.
2. a and b together, at these temperatures. θ is linear in (a, b), and the loss is a log-sum-exp of
   linear functions of θ less a linear one: convex, in K + 1 variables that are not negative.

Temperatures first, because a pool with one prompt's weights cannot tell T_k from b_k. What the user
reads follows from (a, b): `sharpness` s = a + Σ_k b_k, `trust` = a / s, the priors b / Σ_k b_k.

Both losses are means over tokens, times the number of questions n: a question counts as one token,
however long its answer is, since the tokens of one answer are not independent. Added is
`STRENGTH · ‖(a, b) - (1, 0)‖²`, and `STRENGTH · (β_k - 1)²` for a temperature: with few questions
the pack stays as it is, and the larger n, the less this counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from packfuse.evaluation.calibration.answers import AnswerScores, Array
from packfuse.weighting.methods.calibrated import Calibrated, MemberCalibration
from packfuse.weighting.methods.exact import Exact
from packfuse.weighting.methods.losses import FLOOR

STRENGTH = 0.5
"""Weight of the pack as it is, in questions at which a parameter is wrong by one."""

MOST = 10.0
"""Bounds of a temperature: 1 / MOST to MOST."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted parameters of K members.

    Attributes:
        temperatures: T, `[K]`.
        scale: a, how much the weights on the prompt count.
        shifts: b, `[K]`.
    """

    temperatures: Array
    scale: float
    shifts: Array

    @classmethod
    def alone(cls, member: int, members: int) -> Calibration:
        """All for one member, as it is."""
        return cls(np.ones(members), 0.0, np.eye(members)[member])

    @classmethod
    def none(cls, members: int) -> Calibration:
        """The pack as it is."""
        return cls(np.ones(members), 1.0, np.zeros(members))

    @property
    def sharpness(self) -> float:
        """s: the sum of all powers, at temperature 1."""
        return float(self.scale + self.shifts.sum())

    def powers(self, weights: Array) -> Array:
        """θ, for weights `[K]` or `[T, K]` on the prompt."""
        found: Array = (self.scale * weights + self.shifts) / self.temperatures
        return found

    def weighting(self, names: Sequence[str], own: Exact, questions: int) -> Calibrated:
        """The weighting with these parameters.

        Args:
            names: The members, in order.
            own: The pack's own weighting.
            questions: Number of questions that the parameters were fitted to.
        """
        total = float(self.shifts.sum())
        count = len(self.shifts)
        priors = self.shifts / total if total > 0 else np.full(count, 1 / count)
        members = {
            name: MemberCalibration(prior=round(float(p), 6), temperature=round(float(t), 6))
            for name, p, t in zip(names, priors, self.temperatures, strict=True)
        }
        return Calibrated(
            **own.model_dump(),
            members=members,
            sharpness=round(self.sharpness, 6),
            trust=round(self.scale / self.sharpness, 6),
            questions=questions,
        )


def fit(questions: Sequence[AnswerScores]) -> Calibration:
    """The calibration with the lowest loss on right answers.

    Args:
        questions: Of each question, the scores of the right answer alone.
    """
    tokens = _Tokens(questions)
    members = len(tokens.logps)
    powers = np.array(
        [tokens.minimize(tokens.logps[k : k + 1], np.ones(1), 1 / MOST)[0] for k in range(members)]
    ).clip(max=MOST)
    tempered = tokens.logps * powers[:, None, None]
    today = np.einsum("tk,ktc->tc", tokens.weights, tempered)
    start = np.array([1.0, *np.zeros(members)])
    scale, *shifts = tokens.minimize(np.concatenate([today[None], tempered]), start, 0.0)
    found = Calibration(1 / powers, float(scale), np.array(shifts))
    # Members that are worse than chance: the flattest pool is the best one, and tells nothing.
    return found if found.sharpness >= 1 / MOST else Calibration.none(members)


def answer_logps(scores: AnswerScores, calibration: Calibration) -> Array:
    """Log-probability of each answer under a calibration, `[n]`, nats."""
    pooled = scores.counts + np.tensordot(calibration.powers(scores.weights), scores.logps, 1)
    labels = np.take_along_axis(pooled, scores.labels[:, None], 1)[:, 0]
    tokens = labels - logsumexp(pooled, -1)
    # Candidates that were drawn are an estimate, and may leave too little for the others.
    sums = np.bincount(scores.answers, tokens.clip(max=0.0), len(scores.sizes))
    return sums.astype(np.float64)


class _Tokens:
    """The tokens of many answers, padded to one number of candidates.

    Attributes:
        logps: `[K, T, C]`.
        weights: Today's weights at each token, `[T, K]`.
    """

    def __init__(self, questions: Sequence[AnswerScores]) -> None:
        width = max(own.counts.shape[-1] for own in questions)
        gaps = [(0, width - own.counts.shape[-1]) for own in questions]
        self.logps = np.concatenate(
            [
                np.pad(own.logps, ((0, 0), (0, 0), gap), constant_values=FLOOR)
                for own, gap in zip(questions, gaps, strict=True)
            ],
            1,
        )
        self._counts = np.concatenate(
            [
                np.pad(own.counts, ((0, 0), gap), constant_values=-np.inf)
                for own, gap in zip(questions, gaps, strict=True)
            ]
        )
        self._labels = np.concatenate([own.labels for own in questions])[:, None]
        self.weights = np.concatenate(
            [np.tile(own.weights, (len(own.labels), 1)) for own in questions]
        )
        self._per_token = len(questions) / len(self._labels)

    def minimize(self, features: Array, start: Array, least: float) -> Array:
        """The powers `[J]` of J features `[J, T, C]` with the lowest loss, from `start` on.

        The distance to `start` counts; see the module. No power is below `least`.
        """
        wanted = np.take_along_axis(features, self._labels[None], 2)[..., 0].sum(1)
        flat = features.reshape(len(features), -1)

        def loss(powers: Array) -> tuple[float, Array]:
            pooled = self._counts + (powers @ flat).reshape(self._counts.shape)
            most = pooled.max(-1, keepdims=True)
            probs = np.exp(pooled - most)
            sums = probs.sum(-1, keepdims=True)
            probs /= sums
            value = float((most + np.log(sums)).sum() - powers @ wanted) * self._per_token
            gradient = (flat @ probs.ravel() - wanted) * self._per_token
            away = powers - start
            return value + STRENGTH * float(away @ away), gradient + 2 * STRENGTH * away

        bounds = [(least, None)] * len(start)
        found: Array = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
        return found
