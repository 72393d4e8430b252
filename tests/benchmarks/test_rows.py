"""Rows of the speed benchmark: ratios, targets, texts."""

from __future__ import annotations

import pytest

from benchmarks.parts.drafting import quoted
from benchmarks.parts.rows import Part, Report, Row, Target, compare
from benchmarks.parts.texts import prose
from tests.support.packs import vocabulary


def test_ratios_are_taken_round_by_round():
    row = compare("a step", "the sum", [1, 2, 9], [2, 2, 2])
    assert row.ratios == [0.5, 1, 4.5]
    assert (row.ours, row.other, row.ratio) == (2, 2, 1)
    assert row.met is None
    assert compare("an answer", "theirs", [2], [50], speedup=True).ratio == 25


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [
        (Target(value=0.7), 0.7, True),
        (Target(value=0.7), 0.71, False),
        (Target(value=4, least=True), 4, True),
        (Target(value=4, least=True), 3.9, False),
    ],
)
def test_a_target_is_met_or_not(target: Target, ratio: float, met: bool):
    assert compare("", "", [ratio], [1], target=target).met is met


def test_a_report_comes_back_from_its_json():
    step = compare("a step", "the sum", [20, 30], [40, 40], unit="ms", target=Target(value=0.7))
    rows = [step, Row(what="`safe`", target=Target(value=0.7), skipped="no such thing")]
    parts = {"one": Part(title="One part", about="How.", rows=rows)}
    report = Report(machine={"cores": 2}, options={"rounds": 3}, parts=parts, seconds=9)
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_quotations_are_long_pieces_in_common():
    passage = "An OR pattern is two or more patterns separated by vertical bars."
    assert quoted(passage[10:], passage) == 1
    assert quoted("Nothing of the kind.", passage) == 0
    assert quoted(passage[:20] + "#" * 20, passage) == pytest.approx(0.5)


def test_prose_is_long_enough_and_new_each_time():
    own = vocabulary("mistral")
    texts = [prose(own, 40, number) for number in range(60)]
    assert len(set(texts)) == 60
    assert all(35 <= len(own.encode(text)) <= 45 for text in texts)
