"""What the speed benchmark says of its numbers, and the page that it makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.parts.drafting import quoted
from benchmarks.parts.page import render
from benchmarks.parts.rows import Part, Report, Row, Target, compare
from benchmarks.parts.texts import prose
from tests.support.packs import vocabulary

MACHINE: dict[str, Any] = {
    "cpu": "Testing Chip",
    "cores": 2,
    "threads": 2,
    "gpu": "none",
    "python": "3.11.7",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}


@pytest.fixture
def report() -> Report:
    step = compare(
        "a step", "the sum", [20, 30, 90], [40, 40, 40], unit="ms", target=Target(value=0.7)
    )
    papers = compare(
        "an answer",
        "the papers' way",
        [2],
        [50],
        speedup=True,
        target=Target(value=12, least=True),
        note="checked",
    )
    first = compare("first token", "the sum", [0.02], [0.01])
    safe = Row(what="`safe`", target=Target(value=0.7), skipped="no such thing")
    parts = {
        "one": Part(title="One part", about="How.", rows=[step, first]),
        "two": Part(title="Another part", about="How else.", rows=[papers, safe]),
    }
    return Report(machine=MACHINE, options={"rounds": 3}, parts=parts, seconds=9)


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


def test_a_report_comes_back_from_its_json(report: Report):
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_the_page_has_every_target_and_every_row(report: Report):
    page = render(report)
    assert "Testing Chip, 2 cores, 2 threads, no GPU" in page
    targets, one, two = page.split("\n## ")[1:]
    missed = "| a step | the sum | 30 ms | 40 ms | 0.750 | at most 0.7 | **missed** |"
    met = "| an answer | the papers' way | 2 s | 50 s | 25.0 | at least 12 | met; checked |"
    open_ = "| `safe` |  |  |  |  | at most 0.7 | not measured: no such thing |"
    assert targets.startswith("Targets")
    assert targets.strip().splitlines()[-3:] == [missed, met, open_]
    assert one.startswith("One part\n\nHow.\n")
    assert one.strip().splitlines()[-2:] == [
        missed,
        "| first token | the sum | 0.02 s | 0.01 s | 2.000 |  |  |",
    ]
    assert two.strip().splitlines()[-2:] == [met, open_]


def test_no_cell_breaks_the_table(report: Report):
    report.parts["two"].rows = [Row(what="a | b", skipped="two\nlines")]
    assert render(report).endswith("\n| a \\| b |  |  |  |  |  | not measured: two lines |\n")


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
