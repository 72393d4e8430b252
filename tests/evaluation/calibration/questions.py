"""Made-up answers, drawn from a pool that is known."""

from __future__ import annotations

import numpy as np

from packfuse.evaluation.calibration.answers import AnswerScores, Array
from packfuse.evaluation.calibration.validation import Asked

CANDIDATES, ANSWERS = 12, 2


def drawn(
    count: int,
    powers: Array,
    seed: int = 0,
    *,
    weights: Array | None = None,
    tokens: int = 6,
) -> list[Asked]:
    """Questions whose right answers are drawn from the pool with these powers; others at random.

    Args:
        count: Number of questions.
        powers: θ, `[K]`.
        seed: Of the draw.
        weights: The pack's own weights, `[K]`; equal by default.
        tokens: Tokens of each answer.
    """
    rng = np.random.default_rng(seed)
    members = len(powers)
    own = np.full(members, 1 / members) if weights is None else weights
    return [_question(rng, powers, own, tokens) for _ in range(count)]


def _question(rng: np.random.Generator, powers: Array, own: Array, tokens: int) -> Asked:
    count = tokens * ANSWERS
    logps = _normalized(rng.normal(size=(len(powers), count, CANDIDATES)) * 2)
    pooled = np.exp(_normalized(np.tensordot(powers, logps, 1).astype(float)))
    labels = rng.integers(CANDIDATES, size=count)
    labels[:tokens] = [rng.choice(CANDIDATES, p=row) for row in pooled[:tokens]]
    answers = np.repeat(np.arange(ANSWERS), tokens)
    at = logps[:, np.arange(count), labels]
    today = _normalized(np.tensordot(own, logps, 1).astype(float))[np.arange(count), labels]
    scores = AnswerScores(
        logps=logps,
        counts=np.zeros((count, CANDIDATES)),
        labels=labels,
        answers=answers,
        sizes=[tokens] * ANSWERS,
        weights=own,
        reference=0,
        logp=np.bincount(answers, today).astype(float),
    )
    alone = np.stack([np.bincount(answers, row).astype(float) for row in at])
    return Asked(scores, alone, 0, [tokens] * ANSWERS)


def _normalized(logits: Array) -> Array:
    found: Array = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    return found
