"""Which models belong together: on small models in folders, against `Pack.score` by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError, LoadError
from packfuse.evaluation import Journal, Setting, every_method, read_questions
from packfuse.evaluation.determination import (
    Candidate,
    Determination,
    DetermineLimits,
    yaml_comments,
)
from packfuse.evaluation.determine import Determiner
from packfuse.evaluation.question import Question
from packfuse.evaluation.run import QuestionSet
from packfuse.evaluation.systems.choice import under
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.base import Task
from packfuse.models.hf_member import HFMember
from tests.support.bytelevel import save_small

TOWN = "The capital of France is Paris and that of Italy is Rome and the town is poor"
WORDS = TOWN.split()
TEXTS = [{"text": " ".join(WORDS[(3 * n + k) % 16] for k in range(9))} for n in range(8)]
CHOICES = [
    {"question": WORDS[n], "A": WORDS[n + 1], "B": WORDS[n + 2], "answer": "AB"[n % 2]}
    for n in range(12)
]
NUMBERS = [{"question": f"{n} + 1?", "answer": f"{n + 1}"} for n in range(4)]
LINES = {"text": TEXTS, "choice": CHOICES, "number": NUMBERS}
ANYBODY = DetermineLimits(within=1e9, length_ratio=1e9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three tiny models with different tokenizers."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"one": 300, "two": 330, "three": 280}
    return [str(save_small(root / n, s, seed=k)) for k, (n, s) in enumerate(sizes.items())]


def question_set(folder: Path, name: str) -> tuple[QuestionSet, Task]:
    task: Task = tasks().make({"name": name, **({"max_tokens": 5} if name == "number" else {})})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES[name]))
    return read_questions(path, task), task


def determine(
    models: Sequence[str], folder: Path, name: str = "text", **settings: Any
) -> Determination:
    questions, task = question_set(folder, name)
    config = PackConfig.check({"members": list(models), "dtype": "float32"})
    with Journal(folder / "answers.jsonl") as journal:
        return Determiner(
            config,
            questions,
            task,
            journal=journal,
            **{"limits": ANYBODY, "calibrate": False, **settings},
        ).run()


def bits(pack: Pack, questions: Sequence[Question]) -> float:
    """Bits per byte of the right answers, by `Pack.score`."""
    nats = -sum(pack.score(q.prompt, q.options[q.gold]) for q in questions)
    return nats / math.log(2) / sum(len(q.options[q.gold].encode()) for q in questions)


def test_candidates_are_ranked_by_their_own_losses(folders: list[str], tmp_path: Path) -> None:
    result = determine(folders, tmp_path)
    questions, _ = question_set(tmp_path, "text")
    development = questions.questions[::2]
    assert (result.development, result.held_back) == (4, 4)
    assert result.measure == "bits per byte"
    assert sorted(one.name for one in result.candidates) == ["one", "three", "two"]
    losses = [one.score for one in result.candidates]
    for one in result.candidates:
        single = Pack.from_pretrained([one.model], progress=False, dtype="float32")
        assert one.score == one.bits_per_byte == pytest.approx(bits(single, development), abs=1e-4)
        assert one.length is None
    assert losses == sorted(losses, key=lambda loss: loss or 0)
    assert result.candidates[0].stays
    assert result.candidates[0].reason == "best of all by bits per byte"


def test_who_stays_is_verified_by_fusing(folders: list[str], tmp_path: Path) -> None:
    """The setting is chosen on one half, the gain measured on the other, by the written pack."""
    result = determine(folders[:2], tmp_path)
    questions, _ = question_set(tmp_path, "text")
    development, held_back = questions.questions[::2], questions.questions[1::2]
    best, other = result.candidates
    assert other.gain is not None
    assert other.stays == (other.gain.value > 0)
    assert other.stays, "these two models make a better pack; take others if not"
    result.config.write(tmp_path / "pack.yaml", yaml_comments(result))
    pack = Pack.from_config(tmp_path / "pack.yaml", progress=False)
    assert pack.names == [best.name, other.name]
    assert Setting.of(pack).dump() == result.setting
    alone = Pack.from_pretrained([best.model], progress=False, dtype="float32")
    expected = bits(alone, held_back) - bits(pack, held_back)
    assert other.gain.value == pytest.approx(expected, abs=1e-4)
    assert f"better by {other.gain.value:+.4f} bits per byte" in other.reason
    # A token without probability counts 1e-6 here and nothing in `Pack.score`.
    start = Setting.of(Pack(pack.members, progress=False))
    others = [bits(under(pack, setting), development) for setting in every_method(start)]
    chosen = bits(pack, development)
    assert chosen == pytest.approx(min(loss for loss in others if math.isfinite(loss)), abs=1e-4)


def test_a_model_twice_makes_no_better_pack(folders: list[str], tmp_path: Path) -> None:
    result = determine([folders[0], folders[0]], tmp_path, limits=DetermineLimits(certain=True))
    assert [one.name for one in result.candidates] == ["one", "one-2"]
    assert result.candidates[0].score == pytest.approx(result.candidates[1].score)
    assert result.candidates[1].gain is not None
    assert result.candidates[1].stays == result.candidates[1].gain.excludes_zero


@pytest.mark.parametrize("near", [True, False])
def test_who_is_too_far_from_the_best_may_not_join(
    folders: list[str], tmp_path: Path, near: bool
) -> None:
    first, second = determine(folders[:2], tmp_path).candidates
    assert first.score
    assert second.score
    gap = (second.score - first.score) / first.score
    within = gap + 1e-6 if near else gap - 1e-6
    result = determine(folders[:2], tmp_path, limits=DetermineLimits(within=within)).candidates[1]
    assert (result.gain is not None) == near
    assert ("from the best, more than" in result.reason) == (not near)
    assert near or not result.stays


def test_accuracy_counts_where_there_is_one(folders: list[str], tmp_path: Path) -> None:
    result = determine(folders[:2], tmp_path, "choice")
    questions, _ = question_set(tmp_path, "choice")
    assert result.measure == "accuracy"
    for one in result.candidates:
        single = Pack.from_pretrained([one.model], progress=False, dtype="float32")
        right = 0
        for question in questions.questions[::2]:
            shares = [
                single.score(question.prompt, option) / len(option.encode())
                for option in question.options
            ]
            right += shares.index(max(shares)) == question.gold
        assert one.score == pytest.approx(right / 6)
    assert (result.candidates[0].score or 0) >= (result.candidates[1].score or 0)


@pytest.mark.parametrize("near", [True, False])
def test_answers_have_to_be_of_like_length(folders: list[str], tmp_path: Path, near: bool) -> None:
    first, second = determine(folders[:2], tmp_path, "number").candidates
    assert first.length
    assert second.length
    assert (first.score, second.score) == (0.0, 0.0)
    ratio = max(first.length, second.length) / min(first.length, second.length)
    assert ratio > 1
    limits = DetermineLimits(within=0.5, length_ratio=ratio + 1e-6 if near else ratio - 1e-6)
    result = determine(folders[:2], tmp_path, "number", limits=limits).candidates[1]
    assert (result.gain is not None) == near
    assert ("a ratio above" in result.reason) == (not near)
    assert not result.stays


def test_a_candidate_that_cannot_be_loaded_is_last_with_the_reason(
    folders: list[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "no" / "such")
    result = determine([missing, *folders[:2]], tmp_path)
    last = result.candidates[-1]
    assert (last.name, last.score, last.stays) == ("such", None, False)
    assert "member 'such' cannot be loaded" in last.reason
    assert len(result.config.members) == 2
    # Whatever the reason says, it stays a comment.
    text = yaml_comments(result)
    assert all(line.startswith("#") for line in text.splitlines())
    result.config.write(tmp_path / "pack.yaml", text)
    assert Pack.from_config(tmp_path / "pack.yaml", progress=False).names == [
        one.name for one in result.candidates[:2]
    ]
    with pytest.raises(LoadError, match="no candidate could be measured"):
        determine([missing, missing], tmp_path)


def test_the_file_says_why(folders: list[str], tmp_path: Path) -> None:
    result = determine(folders, tmp_path, limits=DetermineLimits(within=0.001))
    odd = Candidate(name="odd", model="odd", reason="first line\nmembers: [x]\x1b[31m\x85\u2028end")
    result = result.model_copy(update={"candidates": [*result.candidates, odd]})
    path = tmp_path / "pack.yaml"
    result.config.write(path, yaml_comments(result))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Determined on ")
    assert "4 questions to choose by, 4 held back" in text
    for one in result.candidates[:-1]:
        assert f"#     {one.reason}\n" in text
        assert f"# {one.name:32} {one.score:>13.4f}" in text
    assert "first line members: [x]" in text
    assert PackConfig.read(path) == result.config


@pytest.mark.parametrize("name", ["text", "number"])
def test_after_an_interruption_it_goes_on(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # A member that is loaded is read for a test.
    monkeypatch.setattr("packfuse.models.loading.members.self_test", lambda member: None)
    reads = [0]
    real = HFMember._forward

    def forward(self: HFMember, *args: Any) -> Any:
        reads[0] += 1
        return real(self, *args)

    monkeypatch.setattr(HFMember, "_forward", forward)
    (tmp_path / "whole").mkdir()
    stages: list[tuple[str, int, int]] = []
    expected = determine(
        folders[:2], tmp_path / "whole", name, progress=lambda *stage: stages.append(stage)
    )
    whole = reads[0]
    assert {"one alone", "two alone"} <= {what for what, _, _ in stages}
    assert any(" + " in what for what, _, _ in stages)
    for stop in (len(stages) // 2, len(stages)):
        folder = tmp_path / f"stopped-{stop}"
        folder.mkdir()
        left = [stop]

        def interrupt(*_: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt

        reads[0] = 0
        with pytest.raises(KeyboardInterrupt):
            determine(folders[:2], folder, name, progress=interrupt)
        again = determine(folders[:2], folder, name)
        assert reads[0] == whole
        update = {"source": expected.source}
        assert again.model_copy(update=update) == expected


def test_too_little_to_choose_by(folders: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one model makes no choice"):
        determine(folders[:1], tmp_path)
    questions, task = question_set(tmp_path, "text")
    few = QuestionSet(questions.source, questions.questions[:3])
    config = PackConfig.check({"members": folders})
    with (
        Journal(tmp_path / "answers.jsonl") as journal,
        pytest.raises(ConfigError, match="3 questions are too few"),
    ):
        Determiner(config, few, task, journal=journal)
