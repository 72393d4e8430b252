"""The evidence: its questions, answers that are kept, figures of them, and the mixed workload."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.parts.evidence import calibrating, figures, kept
from benchmarks.parts.evidence.answering import Asking
from benchmarks.parts.evidence.mixed import mixed, stratified
from benchmarks.parts.evidence.sets import SETS, Item, code_items, rounds
from benchmarks.parts.evidence.smaller import PackedLinear
from benchmarks.parts.evidence.systems import CALIBRATION, SYSTEMS, TRIO, Packs
from benchmarks.parts.judge import passes
from packfuse import Pack
from packfuse.evaluation import Journal
from packfuse.evaluation.reports.intervals import difference, ratio
from packfuse.evaluation.systems.choice import alone
from packfuse.models.hf_member import HFMember
from tests.support import pico, small

QUESTIONS = 70


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files with the fields of the real ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    choices = [
        {"question": f"hello {n}?", "A": "true", "B": f"hero {n}", "answer": "AB"[n % 2]}
        for n in range(QUESTIONS)
    ]
    answers = [{"question": f"who {n}?", "answer": [f"low {n}", "hell"]} for n in range(QUESTIONS)]
    numbers = [{"question": f"{n} + 1?", "answer": f"So {n + 1}\n#### {n + 1}"} for n in range(9)]
    files: dict[str, Any] = {"arc": choices, "piqa": choices, "mmlu": choices, "triviaqa": answers}
    every: dict[str, list[dict[str, Any]]] = {**files, "gsm8k": numbers}
    for name, lines in every.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}_dev.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def members() -> list[HFMember]:
    """Tiny models under the names of the real ones."""
    found = []
    for seed, name in enumerate(TRIO):
        own = small.vocabulary(list(small.WORDS)[seed % len(small.WORDS)])
        model = pico.tiny_model(own.tokenizer, seed=seed, context=512)  # type: ignore[arg-type]
        found.append(HFMember(name, model, own))
    return found


def test_a_hundred_functions_that_tests_tell_from_wrong_ones() -> None:
    known = code_items()
    assert len(known) == len({item["id"] for item in known}) == 100
    assert len({item["ask"] for item in known}) == 100
    for item in known:
        name = re.search(r"`(\w+)\(", item["ask"])
        assert name is not None
        assert passes(item["solution"], item["tests"]), item["id"]
        wrong = f"def {name[1]}(*given):\n    return None"
        assert not passes(wrong, item["tests"]), item["id"]


def test_sets_ask_the_same_questions_again(data: Path) -> None:
    for name, own in SETS.items():
        once, again = own.find(data, 0), own.find(data, 0)
        assert once and once == again, name
        assert len({item.key for item in once}) == len(once), name
    assert {name for name, own in SETS.items() if own.find(None, 0) is None} == {
        "triviaqa", "gsm8k", "arc", "piqa", "mmlu", "mathematics", "trivia"
    }  # fmt: skip


def test_rounds_grow_to_all_questions() -> None:
    assert rounds(1119) == [20, 40, 100, 300, 1000, 1119]
    assert rounds(100) == [20, 40, 100]
    assert rounds(7) == [7]


def test_calibrated_packs_are_not_asked_what_they_were_fitted_to() -> None:
    assert SYSTEMS["calibrated"].asked("arc", 1117) == 1117 - CALIBRATION
    assert SYSTEMS["default"].asked("arc", 1117) == 1117
    assert SYSTEMS["unite"].asked("arc", 1117) == 300
    assert SYSTEMS[f"vote {TRIO[0]}"].asked("arc", 1117) == 0
    assert SYSTEMS[f"vote {TRIO[0]}"].asked("gsm8k", 298) == 298


def asked(data: Path, name: str, count: int) -> list[Item]:
    return (SETS[name].find(data, 0) or [])[:count]


def test_answers_are_those_of_the_packs_and_are_kept(
    data: Path, tmp_path: Path, members: list[HFMember]
) -> None:
    path, packs = tmp_path / "answers.jsonl", Packs(members)
    written, scored = asked(data, "triviaqa", 3), asked(data, "arc", 3)
    systems = [*TRIO, "default", f"vote {TRIO[1]}"]
    with Journal(path) as journal:
        asking = Asking(packs, journal)
        assert asking.ask("triviaqa", written, systems) == 15
        assert asking.ask("arc", scored[:2], ["default", "uniform"]) == 2
    with Journal(path) as journal:  # as after a kill
        asking = Asking(Packs(members), journal)
        assert asking.ask("triviaqa", written, systems) == 0
        assert asking.ask("arc", scored, ["default", "uniform"]) == 1
        kept = asking.answers("triviaqa", "default", written)
        losses = asking.answers("arc", "default", scored)
    pack = Pack(members, progress=False)
    for item, line in zip(written, kept, strict=True):
        answer = pack.generate(item.content.prompt, max_new_tokens=16, stop=("\n",))
        assert line is not None
        assert line["answer"] == answer.text.strip()
        assert line["weights"] == pytest.approx(answer.record.weights)
    for item, line in zip(scored, losses, strict=True):
        own = item.content
        assert line is not None
        assert line["nats"] == pytest.approx(
            -pack.score(own.prompt, own.options[own.gold]), rel=1e-4
        )


def test_a_member_alone_answers_as_itself(
    data: Path, tmp_path: Path, members: list[HFMember]
) -> None:
    (item,) = asked(data, "mmlu", 1)
    with Journal(tmp_path / "answers.jsonl") as journal:
        asking = Asking(Packs(members), journal)
        asking.ask("mmlu", [item], [TRIO[2]])
        (line,) = asking.answers("mmlu", TRIO[2], [item])
    own = item.content
    assert line is not None
    found = alone(members[2]).score(own.prompt, own.options[own.gold])
    assert line["nats"] == pytest.approx(-found, rel=1e-4)


def test_a_member_that_writes_best_beyond_chance_gets_all_the_weight(
    data: Path, tmp_path: Path, members: list[HFMember]
) -> None:
    pack, task = Pack(members, progress=False), SETS["triviaqa"].task
    found = [item.content for item in asked(data, "triviaqa", 9)]
    written = [
        alone(members[1]).generate(own.prompt, max_new_tokens=16, stop=task.stop) for own in found
    ]
    own = [
        replace(question, accepted=(answer.text.strip() or "?",))
        for question, answer in zip(found, written, strict=True)
    ]
    with Journal(tmp_path / "calibration.jsonl") as journal:
        assert calibrating.chosen(pack, task, own, journal, 0) == TRIO[1]
        assert calibrating.chosen(pack, task, found, journal, 0) is None
        assert calibrating.chosen(pack, SETS["arc"].task, own, journal, 0) is None


def test_packs_that_these_members_cannot_make_are_left_out(members: list[HFMember]) -> None:
    two = Packs(members[:2], {"arc": {"name": "uniform"}})
    assert two.able("pair", "arc")
    assert not two.able("default", "arc")
    three = Packs(members, {"arc": {"name": "sim"}})
    assert three.able("calibrated", "arc")
    assert not three.able("calibrated", "piqa")
    assert three.of("calibrated", "arc").settings.weighting == {"name": "sim"}
    assert three.under("calibrated", "arc") != three.under("default", "arc")


def line(system: str, item: int, *, under: str = "now", **more: Any) -> dict[str, Any]:
    found = {"set": "arc", "system": system, "item": str(item), "under": under, "cpu": 0.5}
    return found | {"right": item % 2 == 0, "nats": math.log(2), "bytes": 2, **more}


def journal_of(folder: Path, lines: Sequence[dict[str, Any]], tail: str = "") -> Path:
    path = folder / "answers.jsonl"
    text = "".join(json.dumps([str(n), one]) + "\n" for n, one in enumerate(lines))
    path.write_text(text + tail)
    return path


def test_figures_of_a_journal_that_grows(tmp_path: Path) -> None:
    lines = [line(system, n) for system in (*TRIO, "default") for n in range(30)]
    lines += [line("default", n, right=True, nats=math.log(2) / 2) for n in range(30)]
    lines += [line("uniform", n) for n in range(figures.FEWEST - 1)]
    lines[3] = line(TRIO[0], 3, unread="too long")
    path = journal_of(tmp_path, lines, tail='["half a li')
    found = figures.report(figures.Answers(path), 0)["sets"]["arc"]
    assert set(found["systems"]) == {*TRIO, "default"}
    assert found["questions"] == 30
    assert found["systems"][TRIO[0]]["questions"] == 29
    own = found["systems"]["default"]
    assert own["accuracy"]["value"] == 1
    assert own["bits_per_byte"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert own["against"]["bits_per_byte"]["value"] == pytest.approx(-0.25)
    assert own["cpu"] == 0.5
    ceiling = found["ceiling"]
    assert ceiling["questions"] == 29
    assert ceiling["beta"]["value"] == ceiling["only_pack"]["value"] == pytest.approx(14 / 29)


def test_answers_under_other_settings_do_not_count(tmp_path: Path) -> None:
    old = [line("default", n, under="before", right=False) for n in range(30)]
    lines = [line(s, n, right=True) for s in (*TRIO, "default") for n in range(20)]
    found = figures.report(figures.Answers(journal_of(tmp_path, [*old, *lines])), 0)["sets"]["arc"]
    assert found["systems"]["default"]["questions"] == 20
    assert found["systems"]["default"]["accuracy"]["value"] == 1


def _rounded(found: Any) -> Any:
    return json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 3))


def test_kept_figures_are_those_of_the_journal(tmp_path: Path) -> None:
    lines = [line(system, n) for system in (*TRIO, "default") for n in range(25)]
    lines += [line("default", n) for n in range(25, 30)]
    lines[3] = line(TRIO[0], 3, unread="too long")
    lines[4] = line(TRIO[0], 4, right=None)
    known = figures.Answers(journal_of(tmp_path, lines))
    kept.write(known.known, tmp_path / "kept")
    again = figures.Answers(tmp_path / "no.jsonl", kept.read(tmp_path / "kept"))
    found, wanted = (_rounded(figures.report(own, 0)["sets"]) for own in (again, known))
    assert found == wanted
    # Answers under other settings replace them.
    newer = [line("default", n, under="then", right=False) for n in range(20)]
    both = figures.Answers(journal_of(tmp_path, newer), kept.read(tmp_path / "kept"))
    assert figures.report(both, 0)["sets"]["arc"]["systems"]["default"]["questions"] == 20


def test_kept_answers_are_not_asked_again(
    data: Path, tmp_path: Path, members: list[HFMember]
) -> None:
    scored = asked(data, "arc", 4)
    with Journal(tmp_path / "answers.jsonl") as journal:
        Asking(Packs(members), journal).ask("arc", scored[:3], ["default", "uniform"])
    kept.write(figures.Answers(tmp_path / "answers.jsonl").known, tmp_path / "kept")
    known = kept.read(tmp_path / "kept")
    with Journal(tmp_path / "more.jsonl") as journal:
        assert Asking(Packs(members), journal, known).ask("arc", scored, ["default"]) == 1
        others = Packs([HFMember(TRIO[0], members[1].model, members[1].vocabulary), *members[1:]])
        assert Asking(others, journal, known).ask("arc", scored[:3], ["default"]) == 3


def test_packed_layers_compute_what_plain_ones_do() -> None:
    torch.manual_seed(0)
    plain = torch.nn.functional.linear
    packed = PackedLinear(plain)
    weight, bias = torch.randn(300, 200).bfloat16(), torch.randn(300).bfloat16()
    with torch.no_grad():
        for rows in (1, 5, 40):
            hidden = torch.randn(2, rows, 200).bfloat16()
            found, wanted = packed(hidden, weight, bias), plain(hidden, weight, bias)
            assert torch.allclose(found.float(), wanted.float(), atol=0.3, rtol=0.02)
            assert packed(hidden.float(), weight.float()).equal(
                plain(hidden.float(), weight.float())
            )


def test_two_ways_of_computing_are_compared(tmp_path: Path) -> None:
    lines = [line(system, n) for system in (*TRIO, "default") for n in range(25)]
    (tmp_path / "shipped").mkdir()
    shipped = [line("default", n, nats=math.log(2) / 2) for n in range(30)]
    found = figures.report(
        figures.Answers(journal_of(tmp_path, lines)),
        0,
        figures.Answers(journal_of(tmp_path / "shipped", shipped)),
    )["bfloat16"]
    assert list(found) == ["arc"]
    assert list(found["arc"]) == ["default"]
    assert found["arc"]["default"]["questions"] == 25
    assert found["arc"]["default"]["bits_per_byte"]["value"] == pytest.approx(0.25)
    assert found["arc"]["default"]["accuracy"]["value"] == 0


def test_the_vote_is_that_of_the_best_member(tmp_path: Path) -> None:
    systems = {TRIO[0]: 3, TRIO[1]: 2, TRIO[2]: 3, "default": 1, f"vote {TRIO[1]}": 4}
    lines = [line(s, n, right=n % k == 0) for s, k in systems.items() for n in range(24)]
    found = figures.report(figures.Answers(journal_of(tmp_path, lines)), 0)["sets"]["arc"]
    assert found["best"]["accuracy"] == TRIO[1]
    assert found["equal_compute"]["system"] == f"vote {TRIO[1]}"
    assert found["equal_compute"]["value"] == pytest.approx(1 - 1 / 4)


def test_answers_to_what_is_not_asked_any_more_are_forgotten(tmp_path: Path) -> None:
    lines = [line("default", n, right=True) for n in range(3)]
    found = figures.Answers(journal_of(tmp_path, lines))
    ((at, known),) = found.known.items()
    first = next(iter(known))
    found.keep_only("another set", set())
    found.keep_only(at[0], {first, "asked now"})
    assert {place: list(own) for place, own in found.known.items()} == {at: [first]}
    found.keep_only(at[0], {"asked now"})
    assert found.known == {}


def test_every_set_of_the_mixed_workload_counts_alike() -> None:
    def lines(right: Sequence[int]) -> dict[str, dict[str, Any]]:
        return {str(n): {"right": bool(one)} for n, one in enumerate(right)}

    few, many = [1] * 20, [0, 1] * 50
    sets = {
        "code": {TRIO[0]: lines(few), TRIO[1]: lines(few[:10] + [0] * 10), TRIO[2]: lines([0] * 20),
                 "default": lines(few)},
        "arc": {TRIO[0]: lines([0] * 100), TRIO[1]: lines(many), TRIO[2]: lines([0] * 100),
                "default": lines(many), "uniform": lines(many)},
    }  # fmt: skip
    found = mixed(sets, "accuracy", 0)
    assert found["sets"] == {"code": 20, "arc": 100}
    values = {name: row["value"] for name, row in found["systems"].items()}
    assert values == {TRIO[0]: 0.5, TRIO[1]: 0.5, TRIO[2]: 0, "default": 0.75, "oracle": 0.75}
    assert found["best"] == TRIO[0]
    assert found["best_of_set"] == {"code": TRIO[0], "arc": TRIO[1]}
    against = found["systems"]["default"]["against"]
    assert against["value"] == 0.25
    assert 0.19 < against["low"] < 0.25 < against["high"] < 0.31
    assert mixed(sets, "bits_per_byte", 0) == {}
    # Where a calibrated pack was not asked, the pack as shipped answers for it.
    sets["arc"]["calibrated"] = lines([1] * 100)
    assert mixed(sets, "accuracy", 0)["systems"]["calibrated"]["value"] == 1


def test_one_set_has_the_intervals_of_an_evaluation() -> None:
    chooser = np.random.default_rng(1)
    values, sizes = chooser.random((2, 200)), chooser.integers(1, 50, 200).astype(float)
    one, other = (np.stack([own * sizes, sizes], 1) for own in values)
    level, minus = stratified([one], 0), stratified([one], 0, [other])
    expected = (
        ratio(one[:, 0], sizes, 0),
        difference(one[:, 0].tolist(), other[:, 0].tolist(), sizes.tolist(), 0),
    )
    for found, wanted in zip((level, minus), expected, strict=True):
        assert found.value == pytest.approx(wanted.value)
        assert found.low == pytest.approx(wanted.low, abs=0.01)
        assert found.high == pytest.approx(wanted.high, abs=0.01)
