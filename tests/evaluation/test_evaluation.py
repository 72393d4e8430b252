"""A whole evaluation on small packs: alone and together, interrupted, failing, too long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.evaluation import (
    Journal,
    Samples,
    Setting,
    evaluate,
    every_method,
    grid,
    read_questions,
)
from packfuse.evaluation.reports.report import Evaluation
from packfuse.evaluation.run import QuestionSet
from packfuse.evaluation.systems.choice import alone, systems
from packfuse.evaluation.systems.written import GeneratingSystem, SampledSystem
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.answer import normalize
from packfuse.evaluation.tasks.base import Task
from packfuse.fusion.rules.unite import UniTE
from packfuse.weighting.methods.fixed import Fixed
from tests.support import small
from tests.support.bytelevel import save_small
from tests.support.steps import Steps

CHOICES = [
    {"question": f"the {n} he{'l' * n}o?", "A": "hello", "B": "true " * n, "answer": "AB"[n % 2]}
    for n in range(1, 7)
]
WORDS = ("hello", "the", "true", "hero", "low", "日本")
TEXTS = [{"text": " ".join(WORDS[(n + k) % 6] for k in range(8))} for n in range(5)]
NUMBERS = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
LINES = {"choice": CHOICES, "letter": CHOICES, "text": TEXTS, "number": NUMBERS}


def make(name: str, **settings: Any) -> Task:
    task: Task = tasks().make({"name": name, **settings})
    return task


def question_set(folder: Path, name: str, lines: list[dict[str, Any]] | None = None) -> QuestionSet:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines or LINES[name]))
    return read_questions(path, make(name))


def named_pack(**settings: Any) -> Pack:
    """A pack whose members have a source, so that outcomes in a journal are found again."""
    pack = small.small_pack(**settings)
    for member in pack.members:
        member.model.name_or_path = f"some/{member.name}"
    return pack


def run(
    pack: Pack,
    questions: QuestionSet,
    name: str,
    folder: Path,
    settings: list[Setting] | None = None,
    step: Callable[[int, int], None] | None = None,
) -> Evaluation:
    task = make(name, max_tokens=4) if name == "number" else make(name)
    with Journal(folder / "answers.jsonl") as journal:
        return evaluate(pack, questions, task, settings, journal=journal, step=step)


def timeless(result: Evaluation) -> Any:
    """Without what differs between two runs of the same."""
    plain = result.model_dump(mode="json")
    for row in plain["rows"]:
        del row["tokens_per_second"], row["seconds"]
    return plain


def _note(steps: list[tuple[int, int]], done: int, total: int) -> None:
    steps.append((done, total))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Forward calls of every model, counted; `calls[1]` may set after how many one fails."""
    from transformers import LlamaForCausalLM

    counted = [0, -1]
    real = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        counted[0] += 1
        if counted[0] == counted[1]:
            raise RuntimeError("no memory left")
        return real(self, *args, **kwargs)

    # The wrapper has to keep the signature of the model.
    forward.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    yield counted


@pytest.mark.parametrize("name", ["choice", "letter", "text"])
def test_a_member_is_the_pack_in_which_it_has_all_weight(tmp_path: Path, name: str) -> None:
    pack = named_pack()
    own = Setting.of(pack)
    shares = {"long": (1.0, 0.0), "short": (0.0, 1.0)}
    all_weight = {
        member: replace(own, weighting=Fixed(weights=weights), reference=member)
        for member, weights in shares.items()
    }
    result = run(pack, question_set(tmp_path, name), name, tmp_path, list(all_weight.values()))
    assert [row.label for row in result.rows if row.member] == pack.names
    for member, setting in all_weight.items():
        single, fused = result.row(member), result.row(setting.label)
        assert fused.weights == dict(zip(pack.names, shares[member], strict=True))
        assert single.questions == fused.questions == len(LINES[name])
        for figure in ("accuracy", "raw", "bits_per_byte"):
            one, other = getattr(single, figure), getattr(fused, figure)
            assert (
                (one is None) == (other is None) == (name == "text" and figure != "bits_per_byte")
            )
            if one is not None:
                assert other.model_dump() == pytest.approx(one.model_dump(), abs=1e-5)


def test_a_writing_member_is_the_pack_in_which_it_has_all_weight(tmp_path: Path) -> None:
    pack = named_pack()
    own = replace(Setting.of(pack), weighting=Fixed(weights=(0.0, 1.0)), reference="short")
    result = run(pack, question_set(tmp_path, "number"), "number", tmp_path, [own])
    assert result.verdict == "right number"
    assert [row.questions for row in result.rows] == [4, 4, 4]
    entries = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    answers = [next(iter(outcomes.values())).get("answer") for _, outcomes in entries]
    lengths = [next(iter(outcomes.values()))["length"] for _, outcomes in entries]
    assert len(answers) == 12
    assert (answers[4:8], lengths[4:8]) == (answers[8:], lengths[8:])
    assert result.row("short").length == sum(lengths[8:]) / 4


def test_figures_are_those_of_the_pack_itself(tmp_path: Path) -> None:
    """Losses and grades from `Pack.score`, question by question."""
    pack = named_pack(weighting="sim", fusion="mixture")
    questions = question_set(tmp_path, "choice")
    result = run(pack, questions, "choice", tmp_path, [Setting.of(pack)])
    bits, size, right, raw = 0.0, 0, 0, 0
    for question in questions.questions:
        scores = [pack.score(question.prompt, option) for option in question.options]
        lengths = [len(option.encode()) for option in question.options]
        bits -= scores[question.gold] / math.log(2)
        size += lengths[question.gold]
        shares = [score / length for score, length in zip(scores, lengths, strict=True)]
        right += shares.index(max(shares)) == question.gold
        raw += scores.index(max(scores)) == question.gold
    row = result.row(Setting.of(pack).label)
    assert row.bits_per_byte is not None
    assert row.accuracy is not None
    assert row.raw is not None
    assert row.bits_per_byte.value == pytest.approx(bits / size, abs=1e-5)
    assert (row.accuracy.value, row.raw.value) == pytest.approx((right / 6, raw / 6))
    assert row.setting == Setting.of(pack).dump()


def test_every_method_is_evaluated_by_default_and_the_packs_own_if_answers_are_generated(
    tmp_path: Path,
) -> None:
    pack = named_pack()
    result = run(pack, question_set(tmp_path, "text"), "text", tmp_path)
    assert [r.label for r in result.packs] == [s.label for s in every_method(Setting.of(pack))]
    assert all(row.bits_per_byte and row.accuracy is None for row in result.rows)
    written = run(pack, question_set(tmp_path, "number"), "number", tmp_path)
    assert [row.label for row in written.packs] == [Setting.of(pack).label]


@pytest.mark.parametrize("name", ["choice", "number"])
def test_after_an_interruption_nothing_is_computed_twice(
    tmp_path: Path, calls: list[int], name: str
) -> None:
    pack, questions = named_pack(), question_set(tmp_path, name)
    settings = [] if name == "number" else list(grid(Setting.of(pack), pack.names, 2))
    expected = run(pack, questions, name, tmp_path / "whole", settings or None)
    whole = calls[0]
    assert whole > 10
    total = 3 * len(questions.questions)
    for stop in (1, 8, total - 1):
        folder = tmp_path / f"stopped-{stop}"

        def interrupt(done: int, _: int, stop: int = stop) -> None:
            if done == stop:
                raise KeyboardInterrupt

        calls[0] = 0
        with pytest.raises(KeyboardInterrupt):
            run(pack, questions, name, folder, settings or None, interrupt)
        first = calls[0]
        steps: list[tuple[int, int]] = []
        step = partial(_note, steps)
        result = run(pack, questions, name, folder, settings or None, step)
        if name == "choice":
            assert calls[0] == whole
        else:
            # Answers that were being written when it stopped are begun again.
            assert calls[0] - first < whole <= calls[0]
        assert 0 < first <= whole
        assert timeless(result) == timeless(expected)
        assert steps == [(done + 1, total) for done in range(total)]
    calls[0] = 0
    assert timeless(run(pack, questions, name, tmp_path / "whole", settings or None)) == (
        timeless(expected)
    )
    assert calls[0] == 0


def test_figures_do_not_depend_on_what_was_known_first(tmp_path: Path) -> None:
    pack, questions = named_pack(), question_set(tmp_path, "choice")
    own = [Setting.of(pack)]
    expected = run(pack, questions, "choice", tmp_path / "whole", own)
    late = QuestionSet(questions.source, questions.questions[3:])
    run(pack, late, "choice", tmp_path / "late", own)
    result = run(pack, questions, "choice", tmp_path / "late", own)
    assert timeless(result) == timeless(expected)


def test_other_settings_tasks_and_members_are_evaluated_anew(
    tmp_path: Path, calls: list[int]
) -> None:
    pack, questions = named_pack(), question_set(tmp_path, "choice")
    own = Setting.of(pack)
    run(pack, questions, "choice", tmp_path, [own])
    for setting in (replace(own, rule=UniTE(k=3)), replace(own, reference="short")):
        calls[0] = 0
        run(pack, questions, "choice", tmp_path, [setting])
        assert calls[0] > 0
    calls[0] = 0
    run(pack, questions, "letter", tmp_path, [own])
    assert calls[0] > 0
    pack.members[1].model.name_or_path = "some/other"
    calls[0] = 0
    run(Pack(pack.members, reference="long", progress=False), questions, "choice", tmp_path, [own])
    assert calls[0] > 0


def test_answers_of_another_revision_are_not_taken_for_its_own(tmp_path: Path) -> None:
    folder = str(save_small(tmp_path / "model", 300, seed=0))

    def keys(revision: str, name: str) -> list[str]:
        models = [{"model": folder, "revision": revision, "name": one} for one in ("a", "b")]
        pack = Pack.from_pretrained(models, progress=False)
        return [system.key for system in systems(pack, make(name), [Setting.of(pack)])]

    for name in ("choice", "number"):
        one, other = keys("main", name), keys("other", name)
        assert one == keys("main", name)
        assert len({*one, *other}) == 6


def test_a_member_that_fails_stops_alone_and_keeps_its_answers(
    tmp_path: Path, calls: list[int]
) -> None:
    pack, questions = named_pack(), question_set(tmp_path, "choice")
    own = [Setting.of(pack)]
    expected = run(pack, questions, "choice", tmp_path / "whole", own)
    calls[:] = [0, 5]
    result = run(pack, questions, "choice", tmp_path / "failing", own)
    first = result.row("long")
    assert first.failed is not None
    assert "member 'long' failed" in first.failed
    assert "no memory left" in first.failed
    assert 0 < first.questions < 6
    for row in result.rows[1:]:
        assert (row.failed, row.questions) == (None, 6)
        assert row.bits_per_byte == expected.row(row.label).bits_per_byte
    assert result.best["bits_per_byte"] == "short"
    calls[:] = [0, -1]
    again = run(pack, questions, "choice", tmp_path / "failing", own)
    assert timeless(again) == timeless(expected)


@pytest.mark.parametrize("name", ["choice", "number"])
def test_a_question_that_is_too_long_is_left_out_by_those_that_cannot_read_it(
    tmp_path: Path, name: str
) -> None:
    """`hello` is one token to the first member and three to the second."""
    long = {**LINES[name][0], "question": "hello" * 70}
    longest = {**LINES[name][0], "question": "x" * 300}
    pack = named_pack(context=200)
    questions = question_set(tmp_path, name, [*LINES[name], long, longest])
    count = len(LINES[name])
    where = {f"{questions.source}, line {count + 1}", f"{questions.source}, line {count + 2}"}
    result = run(pack, questions, name, tmp_path, [Setting.of(pack)])
    assert [row.questions for row in result.rows] == [count + 1, count, count]
    assert set(result.unread) == where
    assert all("can read 200" in reason for reason in result.unread.values())
    assert not any(row.failed for row in result.rows)
    assert result.questions == count + 2


# Written answers, and the best member at equal compute.


def test_written_answers_are_decoded_together_and_are_those_of_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, questions = named_pack(), question_set(tmp_path, "number")
    steps = Steps(monkeypatch)
    task = make("number", max_tokens=4)
    system = GeneratingSystem(pack, "pack")
    found = [one["pack"] for one in system.run(task, questions.questions) if isinstance(one, dict)]
    assert max(steps.sizes) == len(questions.questions)
    for question, outcome in zip(questions.questions, found, strict=True):
        answer = pack.generate(question.prompt, max_new_tokens=4, stop=task.stop)
        graded = task.grade_text(question, answer.text)
        assert (outcome.answer, outcome.right) == (graded.answer, graded.right)
        usage = answer.record.usage
        assert outcome.tokens == usage.total_tokens
        written = [len(member.vocabulary.encode(answer.text)) for member in pack.members]
        assert outcome.member_tokens == sum(usage.prompt_tokens_by_member.values()) + sum(written)


def test_a_majority_of_samples_is_the_one_counted_by_hand(tmp_path: Path) -> None:
    pack, task = named_pack(), make("answer", max_tokens=3)
    asked = [f"the {n}" for n in range(6)]
    sampling = {"temperature": 1.5, "do_sample": True, "num_return_sequences": 5, "seed": 3}
    short = alone(pack.members[1])
    lines, right = [], []
    for n, question in enumerate(asked):
        prompt = f"Question: {question}\nAnswer:"
        greedy = short.generate(prompt, max_new_tokens=3, stop="\n").text.strip() or "none"
        found = short.generate(prompt, max_new_tokens=3, stop="\n", **sampling)
        votes = [normalize(answer.text) for answer in found if normalize(answer.text)]
        most = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)), default="")
        # The greedy answer is right, and in every second question what most samples say.
        accepted = [greedy, *([most] if most and n % 2 else [])]
        lines.append({"question": question, "answer": accepted})
        right.append(most in map(normalize, accepted))
    questions = question_set(tmp_path, "answer", lines)
    samples = Samples(5, temperature=1.5)
    with Journal(tmp_path / "answers.jsonl") as journal:
        result = evaluate(pack, questions, task, journal=journal, samples=samples, seed=3)
        again = evaluate(pack, questions, task, journal=journal, samples=samples, seed=3)
    assert timeless(again) == timeless(result)
    row = result.sampled
    assert row is not None
    assert (row.label, row.samples) == ("short · 5 samples, majority", 5)
    assert (row.member, row.setting) == (False, None)
    assert row not in result.packs
    assert row.accuracy is not None
    assert row.accuracy.value == pytest.approx(sum(right) / len(right))
    assert 0 < row.accuracy.value < 1
    assert row.member_tokens > result.row("short").member_tokens
    assert [one.against.samples is None for one in result.rows] == [
        one == row for one in result.rows
    ]


def test_the_first_answer_of_the_largest_group_is_chosen() -> None:
    system = SampledSystem(small.small_pack(), Samples(4), 0)

    def chosen(task: str, *texts: str) -> str:
        answers: Any = [SimpleNamespace(text=text) for text in texts]
        return system._chosen(make(task), answers).text

    assert chosen("answer", "Rome", "Paris", "the paris.", "rom") == "Paris"
    assert chosen("number", "no number", "so 12", "it is 7", "7.0") == "it is 7"
    assert chosen("number", "none", "nothing") == "none"
    assert chosen("answer", "a b", "c", "d", "e") == "a b"


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_samples_that_are_all_the_same_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match=r"samples at temperature .* all are the same"):
        Samples(3, temperature)


@pytest.mark.parametrize("count", [1, 0, -2])
def test_too_few_samples_for_a_majority_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} samples have no majority"):
        Samples(count)


def test_samples_of_scored_options_are_refused(tmp_path: Path) -> None:
    questions = question_set(tmp_path, "choice")
    with (
        Journal(tmp_path / "answers.jsonl") as journal,
        pytest.raises(ConfigError, match="samples have no effect on the task 'choice'"),
    ):
        evaluate(named_pack(), questions, make("choice"), journal=journal, samples=Samples(3))


def test_a_nudged_pack_is_evaluated_by_what_it_writes(tmp_path: Path) -> None:
    pack, questions = named_pack(), question_set(tmp_path, "number")
    settings = [Setting.of(pack), Setting.parse("////nudge:threshold=0.4", pack)]
    result = run(pack, questions, "number", tmp_path, settings)
    assert [row.label for row in result.packs] == [own.label for own in settings]
    with pytest.raises(ConfigError, match="'nudge' is for written answers"):
        run(pack, question_set(tmp_path, "choice"), "choice", tmp_path, settings)
