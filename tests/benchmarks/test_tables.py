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
    (tmp_path / "evidence.json").write_text(json.dumps(evidence()))
    return tmp_path


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def evidence() -> dict[str, Any]:
    """Two members, a pack, and what they got in two sets."""
    better, unsure = figure(-0.01, -0.02, -0.001), figure(0.05, -0.01, 0.1)
    loss, share = figure(1.5, 1, 2), figure(0.25, 0, 0.5)
    member: dict[str, Any] = {"questions": 9, "against": {}, "cpu": 0.5}
    vote = {**member, "accuracy": share, "cpu": 1.25}
    pack = {
        "questions": 9,
        "accuracy": share,
        "bits_per_byte": loss,
        "against": {
            "accuracy": {"best": "Ada", **unsure},
            "bits_per_byte": {"best": "Bob", **better},
        },
        "cpu": 1.0,
    }
    pair = {**pack, "questions": 7, "against": {"accuracy": {"best": "Bob", **better}}}
    asked = {
        "title": "A",
        "how": "asked",
        "questions": 9,
        "best": {"accuracy": "Ada", "bits_per_byte": "Bob"},
        "systems": {
            "Ada": {**member, "accuracy": share, "bits_per_byte": loss},
            "Bob": {**member, "accuracy": share, "bits_per_byte": loss},
            "default": pack,
            "pair": pair,
            "vote Ada": vote,
        },
        "ceiling": {
            "questions": 9,
            "beta": share,
            "oracle": share,
            "only_pack": share,
            "needed": 3140,
        },
        "equal_compute": {"system": "vote Ada", "questions": 9, **better},
    }
    text = {"title": "B", "how": "read", "questions": 5, "best": {"bits_per_byte": "Bob"},
            "systems": {"Bob": {**member, "questions": 5, "bits_per_byte": loss}},
            "ceiling": None, "equal_compute": None}  # fmt: skip
    rows = {"Ada": {**loss}, "default": {**loss, "against": better}, "oracle": {**loss}}
    mixed = {"sets": {"a": 9, "b": 5}, "best": "Ada", "systems": rows}
    titles = {"Ada": "Ada", "Bob": "Bob", "default": "pack", "pair": "two", "vote Ada": "Ada, vote"}
    packs = {"default": {}, "pair": {"weighting": "sim"}}
    return {
        "members": ["Ada", "Bob"],
        "systems": {
            name: {"title": title, "members": ["Ada", "Bob"][: 1 + (name in packs)],
                   "settings": packs.get(name, {})}
            for name, title in titles.items()
        },
        "sets": {"a": asked, "b": text},
        "mixed": {"accuracy": {}, "bits_per_byte": mixed},
    }  # fmt: skip


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
    assert lines("evidence accuracy ours", measured) == [
        "|  | questions | best member alone | pack | two |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| A | 9 | 25.0 (0.0 to 50.0), Ada | +5.0 (-1.0 to +10.0) | "
        "**-1.0 (-2.0 to -0.1)**; against Bob; 7 questions |",
    ]
    _, _, one, other = lines("evidence loss ours", measured)
    best = "1.5000 (1.0000 to 2.0000), Bob"
    assert one == f"| A | 9 | {best} | **-0.0100 (-0.0200 to -0.0010)** |"
    assert other == f"| B | 5 | {best} |  |"


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("accuracy members", [f"| A |{3 * ' 25.0 (0.0 to 50.0) |'}"]),
        ("accuracy published", ["| A | 9 | 25.0 (0.0 to 50.0), Ada |"]),
        ("sets", ["| A | asked | 9 |", "| B | read | 5 |"]),
        ("settings", ["| pack | Ada, Bob | nothing |", "| two | Ada, Bob | `weighting='sim'` |"]),
        ("ceiling", [f"| A | 9 |{3 * ' 25.0 (0.0 to 50.0) |'} 3,140 |"]),
        ("cost", ["| Ada | 0.5 |", "| Bob | 0.5 |", "| pack | 1 |", "| two | 1 |",
                  "| Ada, vote | 1.2 |"]),
        ("compute", ["| A | Ada | 25.0 (0.0 to 50.0) | 0.5 |  |",
                     "| A | Ada, vote | 25.0 (0.0 to 50.0) | 1.2 |  |",
                     "| A | pack | 25.0 (0.0 to 50.0) | 1 | **-1.0 (-2.0 to -0.1)** |"]),
        ("mixed", ["| Ada |  |  | 1.5000 (1.0000 to 2.0000) |  |",
                   "| pack |  |  | 1.5000 (1.0000 to 2.0000) | **-0.0100 (-0.0200 to -0.0010)** |",
                   "| the best member of each set |  |  | 1.5000 (1.0000 to 2.0000) |  |"]),
        ("summary", ["| Over 2 sets: pack, minus Ada, bits per byte | "
                     "**-0.0100 (-0.0200 to -0.0010)** | better |",
                     "| pack, set by set, accuracy, points |  | the same within chance: A |",
                     "| pack, set by set, bits per byte |  | better: A |",
                     "| A: the pack minus Ada, vote | **-1.0 (-2.0 to -0.1)** | worse |"]),
        ("readme", ["| the mixed workload of 2 sets | 14 |  | **-0.0100 (-0.0200 to -0.0010)** |",
                    "| A | 9 | +5.0 (-1.0 to +10.0) | **-0.0100 (-0.0200 to -0.0010)** |"]),
    ],
)  # fmt: skip
def test_tables_of_the_evidence(measured: Path, table: str, rows: list[str]) -> None:
    assert lines(f"evidence {table}", measured)[2:] == rows


def test_a_table_that_no_result_has_is_an_error(measured: Path) -> None:
    with pytest.raises(KeyError):
        tables.fill(PAGE.format("speed three"), measured)


def test_the_pages_show_what_was_measured() -> None:
    paths = [tables.ROOT / "README.md", *tables.DOCS.glob("*.md")]
    pages = [path.read_text(encoding="utf-8") for path in paths]
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
