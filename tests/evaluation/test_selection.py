"""What choosing among answers could reach, and how many questions would tell."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.selection import only_right, questions_needed, selection

Answers = dict[Question, Outcome]


def answers(grades: list[bool | None]) -> Answers:
    return {Question(f"line {n}", f"{n}?"): Outcome(right=g) for n, g in enumerate(grades)}


GRADES = st.integers(1, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.booleans(), min_size=size, max_size=size)] * 4)
)


@given(GRADES)
def test_shares_are_counted_question_by_question(grades: tuple[list[bool], ...]) -> None:
    *members, pack = grades
    known = [answers(list(own)) for own in members]
    found = selection(known, seed=0)
    only = only_right(answers(list(pack)), known, seed=0)
    assert found is not None
    assert only is not None
    nobody = [not any(own) for own in zip(*members, strict=True)]
    assert found.beta.value == pytest.approx(sum(nobody) / len(pack))
    assert found.oracle.value == pytest.approx(1 - found.beta.value)
    alone = [right and none for right, none in zip(pack, nobody, strict=True)]
    assert only.value == pytest.approx(sum(alone) / len(pack))
    assert only.value <= found.beta.value
    assert found.oracle.value >= max(sum(own) / len(own) for own in members)


def test_only_questions_that_all_members_answered_count() -> None:
    one, two = answers([True, False, False]), answers([False, False])
    found = selection([one, two], seed=0)
    assert found is not None
    assert found.beta.value == 0.5
    assert only_right(answers([True, True, True]), [one, two], seed=0).value == 0.5  # type: ignore[union-attr]


def test_without_grades_there_is_nothing_to_choose() -> None:
    plain = answers([None, None])
    assert selection([plain, plain], seed=0) is None
    assert only_right(plain, [plain, plain], seed=0) is None
    assert selection([answers([True])], seed=0) is None
    assert only_right(answers([True]), [], seed=0) is None


@given(st.integers(20, 400), st.integers(1, 10), st.integers(0, 10))
def test_so_many_questions_find_a_point_in_four_of_five_cases(
    count: int, better: int, worse: int
) -> None:
    differences = [1.0] * better + [-1.0] * worse + [0.0] * (count - better - worse)
    needed = questions_needed(differences)
    assert needed is not None
    share, both = (better - worse) / count, (better + worse) / count
    deviation = math.sqrt(both - share**2)  # of one question

    def found(questions: int) -> float:
        """The probability that the interval around a gain of one point is above zero."""
        return float(norm.cdf(0.01 * math.sqrt(questions) / deviation - norm.ppf(0.975)))

    assert found(needed) >= 0.8 - 1e-9
    assert found(needed - 1) < 0.8


@pytest.mark.parametrize("differences", [[], [0.0, 0.0], [1.0]])
def test_differences_that_do_not_vary_say_nothing(differences: list[float]) -> None:
    assert questions_needed(differences) is None
