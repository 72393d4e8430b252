"""Calibrating small packs on questions: the figures by hand, what is decided, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError
from packfuse.evaluation import Journal, read_questions
from packfuse.evaluation.calibration.answers import AnswerScores
from packfuse.evaluation.calibration.fit import Calibration
from packfuse.evaluation.calibration.report import CalibrationReport
from packfuse.evaluation.calibration.run import LEAST, Calibrator
from packfuse.evaluation.calibration.validation import CALIBRATED, Validation
from packfuse.evaluation.determination import Determination, DetermineLimits, yaml_comments
from packfuse.evaluation.determine import Determiner
from packfuse.evaluation.question import Question, distinct
from packfuse.evaluation.reports.intervals import Figure
from packfuse.evaluation.run import QuestionSet
from packfuse.evaluation.tasks import tasks
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.calibrated import Calibrated
from tests.evaluation.calibration.questions import drawn
from tests.support import small
from tests.support.bytelevel import save_small

TOWN = "The capital of France is Paris and that of Italy is Rome and the town is poor"
WORDS = TOWN.split()


def choices(count: int) -> list[Question]:
    """Distinct questions with two options each."""
    return [
        Question(
            f"file, line {n}",
            f"{' '.join(WORDS[n % 9 : n % 9 + 5])} {n}:",
            (f" {WORDS[n % 16]} he", f" {WORDS[(5 * n + 3) % 16]} lo"),
            n % 2,
        )
        for n in range(count)
    ]


def calibrate(folder: Path, questions: list[Question], **settings: Any) -> CalibrationReport:
    with Journal(folder / "answers.jsonl") as journal:
        return Calibrator(small.small_pack(**settings), journal).run(questions)


def test_the_figures_are_those_of_the_members_and_of_the_pack(tmp_path: Path) -> None:
    questions = choices(LEAST)
    found = calibrate(tmp_path, questions)
    pack = small.small_pack()
    systems = {
        **{own.name: Pack([own], progress=False) for own in pack.members},
        "as it is": pack,
    }
    size = sum(len(q.options[q.gold].encode()) for q in questions)
    for name, system in systems.items():
        nats = -sum(system.score(q.prompt, q.options[q.gold]) for q in questions)
        bits = nats / math.log(2) / size
        assert found.bits_per_byte[name] == pytest.approx(bits, abs=2e-3), name
    best = min(("long", "short"), key=lambda name: found.bits_per_byte[name])
    assert found.best == best
    for name in ("as it is", "calibrated"):
        saved = found.bits_per_byte[best] - found.bits_per_byte[name]
        assert found.gain[name].value == pytest.approx(saved, abs=1e-6)
    assert found.questions == LEAST
    assert found.fitted
    fitted = weightings().make(found.fitted)
    assert isinstance(fitted, Calibrated)
    assert fitted.questions == LEAST


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    questions = choices(LEAST + 4)
    calibrate(tmp_path, questions[:10])
    before = (tmp_path / "answers.jsonl").read_bytes()
    first = calibrate(tmp_path, questions)
    after = (tmp_path / "answers.jsonl").read_bytes()
    assert after.startswith(before)
    assert calibrate(tmp_path, questions) == first
    assert (tmp_path / "answers.jsonl").read_bytes() == after
    # Another setting is another calibration.
    calibrate(tmp_path, questions[:2], weighting={"name": "exact", "shrinkage": 8})
    assert len((tmp_path / "answers.jsonl").read_bytes()) > len(after)


def test_too_few_questions_leave_the_pack_as_it_is(tmp_path: Path) -> None:
    found = calibrate(tmp_path, choices(LEAST - 1))
    assert found.decision == "refused"
    assert found.weighting is found.fitted is None
    assert found.advice == (
        f"{LEAST - 1} questions are too few to calibrate, {LEAST} are the least. "
        "The pack stays as it is."
    )


def test_questions_that_no_member_answers_right_are_refused(tmp_path: Path) -> None:
    asked = [replace(one, gold=gold) for one in drawn(200, np.ones(2)) for gold in (0, 1)]
    failed = [one for one in asked if not any(one.right(own) for own in one.alone)]
    assert len(failed) >= LEAST
    with Journal(tmp_path / "answers.jsonl") as journal:
        calibrator = Calibrator(small.small_pack(), journal)
        found = calibrator.decide(failed)
        one_right = calibrator.decide(
            [*failed, next(one for one in asked if any(map(one.right, one.alone)))]
        )
    assert found.decision == "refused"
    assert found.weighting is None
    assert found.advice.startswith("no member answers any of the questions right")
    assert one_right.decision != "refused"


def test_questions_that_are_too_long_are_named(tmp_path: Path) -> None:
    long = Question("file, line 99", "word " * 600, (" a", " b"))
    found = calibrate(tmp_path, [*choices(LEAST), long])
    assert found.questions == LEAST
    (note,) = found.notes
    assert note.startswith("left out: file, line 99: ")
    assert note in found.lines()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "mixture"}, "the pool of mixture is not calibrated"),
        ({"weighting": "sim"}, "the weighting sim is not calibrated"),
        ({"gate": "safe"}, "a pack with the gate safe is not calibrated"),
        ({"weighting": "opt"}, "the weighting opt is not calibrated"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        calibrate(tmp_path, choices(2), **settings)


def test_repeated_questions_are_found_and_named() -> None:
    first, second = choices(2)
    again = Question("file, line 7", first.prompt, first.options, first.gold)
    other = Question("file, line 8", first.prompt, first.options, 1 - first.gold)
    kept, repeats = distinct([first, second, again, other])
    assert kept == [first, second, other]
    assert repeats == ["file, line 7 repeats file, line 0"]


# --- what is decided


def figure(low: float, high: float) -> Figure:
    return Figure(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("calibrated", "as_it_is", "decision"),
    [
        ((0.01, 0.03), (-0.01, 0.02), "calibrated"),
        ((0.01, 0.03), (0.015, 0.035), "kept"),
        ((0.02, 0.04), (0.01, 0.03), "calibrated"),
        ((-0.01, 0.05), (-0.02, 0.02), "alone"),
        ((-0.05, -0.01), (-0.02, 0.02), "alone"),
        ((-0.01, 0.05), (0.001, 0.02), "kept"),
    ],
)
def test_what_is_decided(
    tmp_path: Path,
    calibrated: tuple[float, float],
    as_it_is: tuple[float, float],
    decision: str,
) -> None:
    gain = {"as it is": figure(*as_it_is), "calibrated": figure(*calibrated)}
    found = Validation(
        best=1,
        members=[2.0, 1.5],
        bits={name: 1.5 - own.value for name, own in gain.items()},
        gain=gain,
        accuracy={},
    )
    with Journal(tmp_path / "answers.jsonl") as journal:
        calibrator = Calibrator(small.small_pack(), journal)
        report = calibrator._report([], found, Calibration.none(2), [])
    assert report.decision == decision
    if decision == "alone":
        assert report.weighting
        assert report.advice.startswith("the pack is not better than short alone beyond noise.")
        weighting = weightings().make(report.weighting)
        given = weighting.for_members(["long", "short"])
        assert given is not None
        assert given.tolist() == [0, 1]
    else:
        assert report.weighting == (report.fitted if decision == "calibrated" else None)
    assert CALIBRATED in report.gain


# --- in `determine`


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    sizes = {"one": 300, "two": 330}
    return [str(save_small(root / n, s, seed=k)) for k, (n, s) in enumerate(sizes.items())]


LINES = [{"text": " ".join(WORDS[(3 * n + k) % 16] for k in range(9)) + f" {n}"} for n in range(24)]


def determined(models: list[str], folder: Path, lines: list[str], **settings: Any) -> Determination:
    path = folder / "texts.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    task = tasks().make({"name": "text"})
    config = PackConfig.check({"members": models, "dtype": "float32"})
    limits = DetermineLimits(select=False)
    with Journal(folder / "answers.jsonl") as journal:
        questions: QuestionSet = read_questions(path, task)
        return Determiner(config, questions, task, journal=journal, limits=limits, **settings).run()


def test_the_written_pack_is_what_was_decided(folders: list[str], tmp_path: Path) -> None:
    result = determined(folders, tmp_path, [json.dumps(line) for line in LINES])
    report = result.calibration
    assert report
    assert report.decision in ("calibrated", "alone"), "take other models"
    path = tmp_path / "pack.yaml"
    result.config.write(path, yaml_comments(result))
    text = path.read_text()
    assert f"# Calibration on 24 questions: {report.advice}" in text
    assert "  name: calibrated" in text
    pack = Pack.from_config(path, progress=False)
    assert pack.runtime.parts.weighting == weightings().make(report.weighting)
    record = pack.generate("The capital of", max_new_tokens=2).record
    assert record.weighting["name"] == "calibrated"
    if report.decision == "alone":
        assert record.weights == {name: float(name == report.best) for name in pack.names}


def test_lines_that_do_not_count_are_named(folders: list[str], tmp_path: Path) -> None:
    """Half of the lines are broken, one is repeated, one has no question."""
    good = [json.dumps(line) for line in LINES]
    broken = ['{"text": ', '["x"]', '{"txt": "y"}', '{"text": 5}'] * 6
    lines = [line for pair in zip(good, broken, strict=True) for line in pair]
    result = determined(folders, tmp_path, [*lines, good[0], '{"text": "one"}'])
    assert result.calibration
    assert result.calibration.questions == 24
    assert len(result.left_out) == len(broken) + 2
    text = yaml_comments(result)
    assert "# 26 lines left out:" in text
    for n in range(24):
        assert sum(f"texts.jsonl, line {2 * n + 2}: " in line for line in result.left_out) == 1
    assert any(line.endswith("line 50: no usable question") for line in result.left_out)
    repeats = [line for line in result.left_out if "repeats" in line]
    assert len(repeats) == 1
    assert "line 49" in repeats[0]
    assert "line 1" in repeats[0]


def test_few_questions_are_not_calibrated_on(folders: list[str], tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in LINES[:6]]
    result = determined(folders, tmp_path, [*lines, *lines])
    assert result.calibration
    assert result.calibration.advice.startswith("6 questions are too few to calibrate")
    assert result.config.weighting["name"] == "exact"  # type: ignore[index]
    assert len(result.left_out) == 6


def test_calibrating_can_be_left_out(folders: list[str], tmp_path: Path) -> None:
    lines = [json.dumps(line) for line in LINES[:6]]
    result = determined(folders, tmp_path, lines, calibrate=False)
    assert result.calibration is None
    assert [one.stays for one in result.candidates] == [True, True]


def test_scores_can_be_read_again_from_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "answers.jsonl") as journal:
        calibrator = Calibrator(small.small_pack(), journal)
        one, other = (calibrator.ask(choices(1)[0]) for _ in range(2))
    assert isinstance(one.scores, AnswerScores)
    assert one.alone.tolist() == other.alone.tolist()
    assert one.scores.logps.tolist() == other.scores.logps.tolist()


def test_the_reference_is_the_one_that_the_pack_chooses(tmp_path: Path) -> None:
    pack = small.small_pack(reference="auto")
    with Journal(tmp_path / "answers.jsonl") as journal:
        calibrator = Calibrator(pack, journal)
        for question in choices(6):
            chosen = pack.generate(question.prompt, max_new_tokens=1).record.reference
            assert pack.names[calibrator.ask(question).scores.reference] == chosen
