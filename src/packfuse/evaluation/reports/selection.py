"""What choosing among the members' answers could reach, and how many questions would tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import norm

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.intervals import LEVEL, Figure, mean

POWER = 0.8
"""Probability of finding a difference of one point with `questions_needed` questions."""
_POINT = 0.01


class Selection(BaseModel):
    """The members' answers together, on the questions that all of them answered.

    Attributes:
        beta: Share of questions that no member gets right. Whatever chooses among the members'
            answers gets at most one minus that right; fusion is not bound by it.
        oracle: Share of questions that some member gets right: a choice that is always the best.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: Figure
    oracle: Figure


def selection(members: Sequence[Mapping[Question, Outcome]], seed: int) -> Selection | None:
    """See `Selection`; None for fewer than two members, or if nothing is right or wrong."""
    solved = list(_solved(members).values())
    if len(members) < 2 or not solved:
        return None
    return Selection(
        beta=mean([float(not one) for one in solved], seed),
        oracle=mean([float(one) for one in solved], seed),
    )


def only_right(
    own: Mapping[Question, Outcome], members: Sequence[Mapping[Question, Outcome]], seed: int
) -> Figure | None:
    """Share of questions that a system gets right and no member does; None without such grades."""
    solved = _solved(members)
    known = [
        float(bool(own[question].right) and not solved[question])
        for question in solved
        if question in own and own[question].right is not None
    ]
    return mean(known, seed) if known else None


def questions_needed(differences: Sequence[float]) -> int | None:
    """How many questions would show a difference of one point in accuracy, with `POWER`.

    Args:
        differences: By question, one system's grade minus the other's: -1, 0 or 1.

    Returns:
        The number, by the spread of these differences and an interval of 95 %; None if they do not
        vary, so that they say nothing about it.

    Example:
        Two systems that differ on 4 % of the questions:

        >>> questions_needed([0.0] * 96 + [1.0, 1.0, -1.0, -1.0])
        3140
    """
    spread = float(np.std(np.asarray(differences, float))) if differences else 0.0
    if not spread:
        return None
    width = float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(POWER))
    return math.ceil((width * spread / _POINT) ** 2)


def _solved(members: Sequence[Mapping[Question, Outcome]]) -> dict[Question, bool]:
    """Whether some member is right, by question that all members have a grade for."""
    if not members:
        return {}
    first, *others = members
    return {
        question: any(own[question].right for own in members)
        for question in first
        if first[question].right is not None and all(question in own for own in others)
    }
