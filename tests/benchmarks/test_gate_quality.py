"""The benchmark of what gates cost, on small packs, and its section of the page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.parts import gold, page, working
from benchmarks.parts.page import render
from benchmarks.parts.quality import Quality, Scored, TextSet, Writing
from benchmarks.parts.qualitypage import section
from benchmarks.parts.rows import Report
from packfuse import Pack
from packfuse.evaluation import Journal
from packfuse.evaluation.intervals import Figure
from packfuse.evaluation.question import Question
from packfuse.evaluation.systems import alone
from packfuse.evaluation.tasks import tasks
from packfuse.fusion.gates import gates
from tests.support import small

PROMPTS = ("the hello hello", "true the hero: 4", "low hello the true")
SOLUTION = " hello the true #### 7"
MACHINE: dict[str, Any] = {"cpu": "Testing Chip", "cores": 2, "threads": 1, "gpu": "none"}
MACHINE |= {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"}


def questions() -> list[Question]:
    return [
        Question(f"line {number}", prompt, accepted=("7",), solution=SOLUTION)
        for number, prompt in enumerate(PROMPTS)
    ]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small.small_pack(reference="auto")


@pytest.fixture(scope="module")
def text_set(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> TextSet:
    asked = [gold.gold(question) for question in questions()]
    with Journal(tmp_path_factory.mktemp("gold") / "journal.jsonl") as journal:
        return gold.measure(pack, "Words", asked, journal, 0)


@pytest.fixture(scope="module")
def writing(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Writing:
    task = tasks().make({"name": "number", "max_tokens": 12})
    with Journal(tmp_path_factory.mktemp("written") / "journal.jsonl") as journal:
        return working.measure(pack, "Words", task, questions(), journal)


def bits(pack: Pack, **settings: Any) -> float:
    """Bits per byte of the solution, question by question."""
    nats = -sum(pack.score(prompt, SOLUTION, **settings) for prompt in PROMPTS)
    return nats / math.log(2) / (len(PROMPTS) * len(SOLUTION.encode()))


@pytest.mark.parametrize("reference", ["auto", *small.WORDS])
def test_every_figure_is_what_packs_score(pack: Pack, text_set: TextSet, reference: str) -> None:
    same = Pack(pack.members, reference=reference, progress=False)
    rows = {row.label: row for row in text_set.rows[reference]}
    assert list(rows) == [*gold.GATES, gold.REFERENCE, gold.BEST]
    every = bits(same)
    for name, gate in gold.GATES.items():
        expected = bits(same, gate=gates().dump(gate))
        assert rows[name].bits.value == pytest.approx(expected, abs=1e-5)
        assert rows[name].against.value == pytest.approx(expected - every, abs=1e-5)
    assert rows["every"].fused == 1
    assert rows[gold.REFERENCE].fused == 0
    own = {member.name: bits(alone(member)) for member in pack.members}
    best = min(own, key=lambda name: own[name])
    assert rows[gold.BEST].member == best
    assert rows[gold.BEST].bits.value == pytest.approx(own[best], abs=1e-5)
    if reference != "auto":
        assert rows[gold.REFERENCE].bits.value == pytest.approx(own[reference], abs=1e-5)
    assert (text_set.texts, text_set.skipped) == (len(PROMPTS), 0)
    assert sum(text_set.references.values()) == len(PROMPTS)


def test_what_is_written_is_what_packs_write(pack: Pack, writing: Writing) -> None:
    rows = {row.label: row for row in writing.rows}
    every, drafted = rows["every"], rows["every, `draft='reference'`"]
    assert (every.same, every.fused) == (len(PROMPTS), 1)
    assert (drafted.same, drafted.right, drafted.bits) == (len(PROMPTS), every.right, every.bits)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
    for label, gate in [("every", "every"), ("safe, `draft='reference'`", "safe")]:
        answers = [
            pack.generate(prompt, gate=gate, stop=("\nQuestion:",), **settings)
            for prompt in PROMPTS
        ]
        lengths = [answer.record.usage.completion_tokens for answer in answers]
        assert rows[label].tokens == pytest.approx(sum(lengths) / len(lengths))
        own = alone(pack.members[0])
        texts = [(p, a.text) for p, a in zip(PROMPTS, answers, strict=True) if a.text]
        said = sum(-own.score(prompt, text) for prompt, text in texts)
        expected = said / math.log(2) / sum(len(text.encode()) for _, text in texts)
        assert rows[label].bits[own.names[0]] == pytest.approx(expected, rel=1e-3)
    assert {f"{name} alone" for name in pack.names} <= rows.keys()


def test_what_is_known_is_not_written_again(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for member in pack.members:
        # Members that came from nowhere are never the same ones.
        monkeypatch.setattr(member.model, "name_or_path", member.name)
    task, (question, *_) = tasks().make({"name": "number", "max_tokens": 4}), questions()
    with Journal(tmp_path / "journal.jsonl") as journal:
        first = working.measure(pack, "Words", task, [question], journal)
        # Times never come out the same twice.
        assert working.measure(pack, "Words", task, [question], journal) == first


def test_times_are_compared_where_answers_are_long_enough() -> None:
    def said(seconds: float, tokens: int) -> dict[str, float]:
        return {"seconds": seconds, "tokens": tokens}

    pairs = [(said(2, 10), said(8, 20)), (said(3, 10), said(4, 20)), (said(9, 1), said(1, 20))]
    assert working._per_token(pairs, "seconds") == pytest.approx((0.5 + 1.5) / 2)
    assert working._per_token(pairs[2:], "seconds") is None


def test_runs_of_four_words_that_come_again() -> None:
    assert working.repeated(["a b c d e", "a b c d"]) == 0
    assert working.repeated(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert working.repeated(["a b", ""]) == 0


def scored(label: str, low: float, high: float, fused: float) -> Scored:
    bits_ = Figure(value=1.0, low=0.9, high=1.1)
    against = Figure(value=(low + high) / 2, low=low, high=high)
    return Scored(label=label, bits=bits_, against=against, fused=fused)


def decided(*safe: tuple[float, float]) -> str:
    """The end of the section, for a gate with these intervals on so many sets."""
    sets = {
        f"set {number}": TextSet(
            title=f"set {number}",
            texts=3,
            length=9,
            skipped=0,
            references={"long": 3},
            rows={
                "auto": [
                    scored("every", 0, 0, 1),
                    scored("safe", low, high, 0.25),
                    *(scored(name, 0.1, 0.2, 0.5) for name in list(gold.GATES)[2:]),
                ]
            },
        )
        for number, (low, high) in enumerate(safe)
    }
    quality = Quality(machine=MACHINE, options={}, texts=sets)
    return "\n".join(section(quality, "here")).split("### What follows")[1]


def test_the_page_says_what_follows() -> None:
    mixed = decided((0.01, 0.02), (-0.2, -0.1), (-0.1, 0.1))
    assert "- `safe`: worse than `every` on set 0; better on set 1; undecided on set 2." in mixed
    assert "- `threshold 0.9`: worse than `every` on set 0, set 1, set 2." in mixed
    assert mixed.endswith("without being worse elsewhere: `every` stays.")
    assert decided((-0.2, -0.1), (-0.1, 0.1)).endswith("against the default: `safe`.")


def test_the_section_has_every_figure(text_set: TextSet, writing: Writing) -> None:
    quality = Quality(machine=MACHINE, options={}, texts={"words": text_set}, writing=writing)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality
    report = Report(machine=MACHINE, options={}, parts={})
    found = render(report, quality)
    assert found.startswith(render(report))
    for reference, rows in text_set.rows.items():
        part = found.split(f"### `reference={reference!r}`")[1].split("###")[0]
        assert part.count("\n| ") == len(rows) + 1
        assert f"| {rows[0].bits.value:.4f} |" in part
    assert f"| {writing.rows[0].right * 3:.0f} of 3 |" in found


def test_the_page_is_that_of_what_was_measured() -> None:
    report = Report.model_validate_json(page.SPEED.read_text(encoding="utf-8"))
    quality = Quality.model_validate_json(page.GATES.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == render(report, quality)
