"""Tables of the pages in docs/, from what benchmarks measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from benchmarks.parts.rows import Part, Report, Row, compare

PAGE = "Before.\n\n<!-- table: {} -->\nold\n<!-- end -->\n\nAfter.\n"


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    step = compare("a step", "the sum", [20, 30, 90], [40, 40, 40], unit="ms")
    papers = compare("an answer", "the papers' way", [2], [50], speedup=True, note="a | b\nc")
    first = compare("a first token", "the sum", [0.002], [0.1])
    parts = {
        "one": Part(title="One", about="", rows=[step, first, Row(what="a gap", skipped="no")]),
        "two": Part(title="Two", about="", rows=[papers]),
    }
    report = Report(machine={"cpu": "Testing Chip", "cores": 2}, options={}, parts=parts)
    (tmp_path / "speed.json").write_text(report.model_dump_json())
    (tmp_path / "evidence.json").write_text(json.dumps({"runs": runs()}))
    return tmp_path


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def runs() -> dict[str, Any]:
    """Questions for two members, and text for three."""
    rows = {
        "Ada": {"bits_per_byte": figure(1.5, 1, 2), "accuracy": figure(0.25, 0, 0.5)},
        "exact": {
            "weights": {"Ada": 0.2, "Bob": 0.5, "Eve": 0.3},
            "against": {
                "bits_per_byte": figure(-0.01, -0.02, -0.001),
                "accuracy": figure(0.05, -0.01, 0.1),
            },
        },
        "top1": {"against": {"bits_per_byte": figure(0, 0, 0), "accuracy": None}},
    }
    one: dict[str, Any] = {"texts": 9, "shown": {"default": "exact", "top1": "top1"}, "rows": rows}
    pair, three = ["Ada", "Bob"], ["Ada", "Bob", "Eve"]
    return {
        "a": {"title": "A", "members": pair, "best": {"accuracy": "Ada"}, **one},
        "b": {"title": "B", "members": three, "best": {"bits_per_byte": "Ada"}, **one},
    }


def lines(name: str, measured: Path) -> list[str]:
    """The table of that name as it stands on a page."""
    page = tables.fill(PAGE.format(name), measured)
    start, end = (f"Before.\n\n<!-- table: {name} -->\n", "\n<!-- end -->\n\nAfter.\n")
    assert page.startswith(start)
    assert page.endswith(end)
    return page.removeprefix(start).removesuffix(end).split("\n")


def test_rows_of_a_part(measured: Path) -> None:
    assert lines("speed one", measured) == [
        "|  | compared with | packfuse | the other | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        "| a step | the sum | 30 ms | 40 ms | 0.75 |",
        "| a first token | the sum | 0.002 s | 0.1 s | 0.02 |",
    ]
    assert len(lines("speed one a first", measured)) == 3


def test_no_cell_breaks_the_table(measured: Path) -> None:
    *_, row = lines("speed two", measured)
    assert row == r"| an answer | the papers' way | 2 s | 50 s | 25.0 | a \| b c |"


def test_the_machine_is_one_line(measured: Path) -> None:
    assert lines("speed machine", measured) == ["cpu: Testing Chip; cores: 2"]


def test_differences_are_bold_where_the_interval_excludes_zero(measured: Path) -> None:
    *_, accuracy = lines("evidence accuracy", measured)
    assert accuracy == "| A | 9 | 25.0% (Ada) | +5.0 (-1.0 to +10.0) |  |  |"
    *_, domain = lines("evidence domains", measured)
    best = "| B | 9 | 1.5000 (Ada) | 0.30 | **-0.0100 (-0.0200 to -0.0010)** |  |"
    assert domain == f"{best} +0.0000 (+0.0000 to +0.0000) |"


def test_a_table_that_no_result_has_is_an_error(measured: Path) -> None:
    with pytest.raises(KeyError):
        tables.fill(PAGE.format("speed three"), measured)


def test_the_pages_show_what_was_measured() -> None:
    pages = [path.read_text(encoding="utf-8") for path in tables.DOCS.glob("*.md")]
    assert sum(page.count("<!-- table: ") for page in pages) > 10
    for page in pages:
        assert tables.fill(page) == page


def test_first_answers_by_part(tmp_path: Path) -> None:
    def system(right: int, against: Any) -> dict[str, Any]:
        parts = {"chat": [right, 3], "code": [1, 2]}
        return {"parts": parts, "right": right + 1, "turns": 0, "loops": 1, "against": against}

    found = {"Ada": system(1, None), "pack": system(3, figure(0.4, 0.1, 0.7))}
    (tmp_path / "first_use.json").write_text(json.dumps({"systems": found}))
    assert lines("first_use", tmp_path)[2:] == [
        "| Ada | 1 | 1 | 2 |  | 0 | 1 |",
        "| pack | 3 | 1 | 4 | **+40.0 (+10.0 to +70.0)** points | 0 | 1 |",
    ]
