"""The report of an evaluation, against outcomes made by hand: figures, pairs, tables, pictures."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from packfuse.errors import ConfigError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.markdown import comparison, document, section, table
from packfuse.evaluation.reports.plot import _curves, draw
from packfuse.evaluation.reports.report import Evaluation
from packfuse.evaluation.reports.summary import summarize

QUESTIONS = [Question(f"file, line {n}", f"question {n}") for n in range(6)]
BIT = math.log(2)
PNG = b"\x89PNG\r\n\x1a\n"

Answers = dict[Question, Outcome]


def outcomes(grades: str, bits: float = 1.0, start: int = 0, **fields: Any) -> Answers:
    """`y` is right, `n` is wrong; each scored on four bytes at so many bits per byte."""
    return {
        question: Outcome(
            right=grade == "y", raw=grade == "n", nats=4 * bits * BIT, bytes=4, **fields
        )
        for question, grade in zip(QUESTIONS[start:], grades, strict=False)
    }


def summary(answered: dict[str, Answers], **fields: Any) -> Evaluation:
    """Members `one` and `two`; every other label is a setting of the pack."""
    given: dict[str, Any] = {
        "members": ["one", "two"],
        "settings": {
            name: {"fusion": {"name": "packllm"}, "reference": "auto"}
            for name in answered
            if name not in ("one", "two")
        },
        "failed": {},
        "questions": 6,
        "seed": 0,
        **fields,
    }
    return summarize(
        "some/dev.jsonl", {"name": "choice", "shots": 0}, "accuracy", answered, **given
    )


THREE = {
    "one": outcomes("yynnnn", 1.0),
    "two": outcomes("yyynnn", 2.0),
    "pack": outcomes("yyyyyn", 0.5),
}


def value(figure: Any) -> float:
    assert figure is not None
    return float(figure.value)


def test_figures_and_the_best_member_by_each() -> None:
    found = summary(THREE)
    assert [row.label for row in found.rows] == ["one", "two", "pack"]
    assert [row.member for row in found.rows] == [True, True, False]
    assert [value(row.accuracy) for row in found.rows] == pytest.approx([2 / 6, 3 / 6, 5 / 6])
    assert [value(row.raw) for row in found.rows] == pytest.approx([4 / 6, 3 / 6, 1 / 6])
    assert [value(row.bits_per_byte) for row in found.rows] == pytest.approx([1.0, 2.0, 0.5])
    assert found.best == {"accuracy": "two", "raw": "one", "bits_per_byte": "one"}
    pack, one = found.row("pack"), found.row("one")
    assert value(pack.against.accuracy) == pytest.approx(2 / 6)
    assert value(pack.against.raw) == pytest.approx(-3 / 6)
    assert value(pack.against.bits_per_byte) == pytest.approx(-0.5)
    assert value(one.against.accuracy) == pytest.approx(-1 / 6)
    # No system is compared with itself.
    assert one.against.bits_per_byte is None
    assert found.row("two").against.accuracy is None
    assert [row.label for row in found.packs] == ["pack"]
    with pytest.raises(KeyError):
        found.row("three")


def test_differences_are_taken_on_common_questions() -> None:
    """The pack missed the first three, which the best member has right."""
    answered = {
        "one": outcomes("yyynny"),
        "two": outcomes("nnnnnn"),
        "pack": outcomes("yyn", start=3),
    }
    found = summary(answered)
    pack = found.row("pack")
    assert pack.questions == 3
    assert value(pack.accuracy) == pytest.approx(2 / 3)
    # Lines 3, 4, 5: wrong, wrong, right by the member; right, right, wrong by the pack.
    assert value(pack.against.accuracy) == pytest.approx((2 - 1) / 3)


def test_losses_are_weighed_by_bytes_and_only_where_scored() -> None:
    one = {
        QUESTIONS[0]: Outcome(nats=2 * BIT, bytes=1),
        QUESTIONS[1]: Outcome(nats=3 * BIT, bytes=9),
        QUESTIONS[2]: Outcome(),
    }
    other = {
        QUESTIONS[0]: Outcome(nats=6 * BIT, bytes=2, exact=False, impossible=2),
        QUESTIONS[1]: Outcome(nats=1 * BIT, bytes=9, exact=False),
        QUESTIONS[2]: Outcome(nats=9 * BIT, bytes=9, impossible=1),
    }
    found = summary({"one": one, "two": {}, "pack": other})
    assert value(found.row("one").bits_per_byte) == pytest.approx((2 + 3) / 10)
    assert value(found.row("pack").bits_per_byte) == pytest.approx((6 + 1 + 9) / 20)
    # Six bits on two bytes stand for three on the member's one.
    against = value(found.row("pack").against.bits_per_byte)
    assert against == pytest.approx((3 - 2 + 1 - 3) / 10)
    assert (found.row("pack").inexact, found.row("pack").impossible) == (2, 3)
    assert found.row("one").accuracy is None
    assert found.best == {"bits_per_byte": "one"}
    assert found.row("two").questions == 0


def test_speed_length_and_weights() -> None:
    first = outcomes("y", tokens=30, seconds=2.0, length=10, weights={"one": 0.25, "two": 0.75})
    second = outcomes("y", start=1, tokens=10, seconds=3.0, weights={"one": 0.75, "two": 0.25})
    row = summary({**THREE, "pack": {**first, **second}}).row("pack")
    assert (row.tokens_per_second, row.length) == (8.0, 5.0)
    assert row.weights == {"one": 0.5, "two": 0.5}
    assert summary(THREE).row("pack").length is None
    assert summary(THREE).row("pack").tokens_per_second == 0


def test_a_member_that_stopped_early_is_not_the_best_for_its_luck() -> None:
    answered = {"one": outcomes("y"), "two": outcomes("yynnnn"), "pack": outcomes("yyynnn")}
    found = summary(answered, failed={"one": "member 'one' failed"})
    assert found.best["accuracy"] == "two"
    assert found.row("one").failed == "member 'one' failed"
    assert value(found.row("pack").against.accuracy) == pytest.approx(1 / 6)
    both = summary(answered, failed={"one": "so", "two": "so"})
    assert both.best["accuracy"] == "one"


def test_a_result_is_json_and_back() -> None:
    found = summary(THREE, skipped=["file, line 9"], unread={"file, line 8": "too long"})
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_broken_lines_are_counted_and_named() -> None:
    found = summary(THREE, broken=["file, line 7: not JSON", "file, line 9: no field 'A'"])
    page = document([found])
    assert "6 questions (seed 0, 0 lines skipped, 2 broken), task" in page
    assert "Broken line: file, line 7: not JSON" in page
    assert "Broken line: file, line 9: no field 'A'" in page


def test_the_page_has_the_comparison_and_every_row() -> None:
    found = summary(THREE, skipped=["file, line 9"], unread={"file, line 8": "too long"})
    page = document([found, found])
    assert page.count("## dev.jsonl") == 2
    assert "6 questions (seed 0, 1 lines skipped, 1 unread), task `choice` (shots 0)" in page
    bits = comparison(found, "bits_per_byte")
    assert bits.startswith("Bits/byte: best setting pack, 0.5000; best member one, 1.0000;")
    assert "-0.5000" in bits
    assert "the interval excludes zero" in bits
    accuracy = comparison(found, "accuracy")
    assert "best setting pack, 83.3%; best member two, 50.0%" in accuracy
    assert "+33.3" in accuracy
    lines = table(found).splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| **one** | 33.3%")
    assert lines[4].startswith("| pack | 83.3%")
    assert all(line in page for line in lines)
    assert len(table(found, found.packs).splitlines()) == 3
    assert section(found, level=3).startswith("### dev.jsonl")


def test_the_page_says_what_choosing_could_reach_and_what_a_point_takes() -> None:
    votes = {"one · 3 samples, majority": outcomes("yynnny", seconds=2.0, member_tokens=30)}
    pack = outcomes("yynyyn", seconds=1.0, member_tokens=20)
    found = summary(
        {**THREE, **votes, "pack": pack},
        settings={"pack": {"fusion": {"name": "packllm"}}},
        samples={"one · 3 samples, majority": 3},
    )
    assert found.selection is not None
    assert (value(found.selection.beta), value(found.selection.oracle)) == (0.5, 0.5)
    assert value(found.row("pack").only) == pytest.approx(2 / 6)
    assert found.row("one").only is None
    assert value(found.sampled.only) == pytest.approx(1 / 6)  # type: ignore[union-attr]
    against = found.row("pack").against
    assert value(against.samples) == pytest.approx(1 / 6)
    # `two` is the best member; the pack is right twice more and once less.
    assert against.needed == math.ceil((2.8015852 / 0.01) ** 2 * (3 / 6 - (1 / 6) ** 2))
    page = document([found])
    assert "No member is right on 50.0%" in page
    assert "only pack is right on 33.3%" in page
    assert "pack minus one · 3 samples, majority: +16.7" in page
    assert "at 1.00 against 2.00 s and 20 against 30 member tokens an answer" in page
    assert f"takes {against.needed:,} questions to show" in page
    lines = table(found).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_a_result_in_a_line_and_in_a_notebook() -> None:
    found = summary({**THREE, "<b>worse</b>": outcomes("nnnnnn", 3.0)})
    expected = "Evaluation(6 questions of dev.jsonl, two 0.500, pack 0.833)"
    assert repr(found) == str(found) == expected
    losses = {name: {QUESTIONS[0]: Outcome(nats=bits * BIT, bytes=1)}
              for name, bits in (("one", 2.0), ("two", 1.0), ("pack", 0.5))}  # fmt: skip
    assert "two 1.000, pack 0.500" in repr(summary(losses))
    assert repr(summary({"one": {}, "two": {}})) == "Evaluation(6 questions of dev.jsonl)"
    html = found._repr_html_()
    cells = [line.split(" | ") for line in table(found).splitlines()[2:]]
    assert len(cells) == html.count("<tr>") - 1 == 4
    for figure in cells[2][1:]:
        assert figure.strip(" |*") in html
    assert "&lt;b&gt;worse&lt;/b&gt;" in html


def test_a_pack_that_is_worse_is_reported_as_worse() -> None:
    found = summary({**THREE, "pack": outcomes("nnnnnn", 3.0)})
    assert "+2.0000" in comparison(found, "bits_per_byte")
    assert "0.0%" in comparison(found, "accuracy")
    assert "-50.0" in comparison(found, "accuracy")


def test_failures_are_on_the_page() -> None:
    found = summary({**THREE, "pack": {}}, failed={"pack": "member 'one' failed: no memory"})
    assert comparison(found, "accuracy") == ""
    assert "**pack stopped: member 'one' failed: no memory**" in document([found])


def weighted(fixed: dict[str, float]) -> dict[str, Any]:
    weighting = {"name": "fixed", "weights": fixed}
    return {"fusion": {"name": "mixture"}, "weighting": weighting, "reference": "one"}


def test_curves_follow_the_weight_of_a_member() -> None:
    shares = (0.0, 0.5, 1.0)
    answered = {**THREE, **{f"w{s}": outcomes("yyynnn", 1 + s) for s in shares}}
    settings = {f"w{s}": weighted({"one": 1 - s, "two": s}) for s in shares}
    settings["pack"] = {"fusion": {"name": "packllm"}, "weighting": {"name": "sim"}}
    found = summary(answered, settings=settings)
    curves = _curves(found)
    assert list(curves) == ["mixture, two, in one"]
    points = curves["mixture, two, in one"]
    assert [share for share, _ in points] == list(shares)
    assert [loss for _, loss in points] == pytest.approx([1 + share for share in shares])
    # A single point is no curve.
    assert (
        _curves(summary({**THREE, "w0": answered["w0.5"]}, settings={"w0": settings["w0.5"]})) == {}
    )


def test_curves_of_three_members_are_of_the_odd_one() -> None:
    three = {
        "a": weighted({"one": 0.8, "two": 0.1, "three": 0.1}),
        "b": weighted({"one": 0.2, "two": 0.4, "three": 0.4}),
        "c": weighted({"one": 0.1, "two": 0.8, "three": 0.1}),
        "d": weighted(dict.fromkeys(("one", "two", "three"), 1 / 3)),
    }
    answered = {**THREE, "three": outcomes("nnnnnn"), **dict.fromkeys(three, THREE["pack"])}
    members = ["one", "two", "three"]
    found = summary(answered, members=members, settings={"pack": {}, **three})
    assert list(_curves(found)) == ["mixture, one, in one"]
    assert [weight for weight, _ in _curves(found)["mixture, one, in one"]] == [0.8, 0.2]


@pytest.mark.parametrize("kind", ["curves", "rows", "loss", "nothing", "pack alone"])
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path: Path, kind: str) -> None:
    kinds: dict[str, dict[str, Answers]] = {
        "curves": {**THREE, "a": outcomes("yyy", 1.5), "b": outcomes("ynn", 0.5)},
        "rows": THREE,
        "loss": {name: {QUESTIONS[0]: Outcome(nats=1.0, bytes=4)} for name in THREE},
        "nothing": {"one": {}, "two": {}, "pack": {}},
        "pack alone": {"one": {}, "two": {}, "pack": outcomes("ynn")},
    }
    answered = kinds[kind]
    settings = {"pack": {}, "a": weighted({"one": 0.5, "two": 0.5})}
    settings["b"] = weighted({"one": 0.1, "two": 0.9})
    found = summary(answered, settings={n: s for n, s in settings.items() if n in answered})
    assert bool(_curves(found)) == (kind == "curves")
    draw(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert (tmp_path / "plot.png").stat().st_size > 2000
    assert document([found])


def test_without_matplotlib_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"plots need matplotlib .*pip install .*\[plot\]"):
        draw(summary(THREE), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())
