"""`packfuse eval` and `packfuse determine` as commands, on two tiny models in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from packfuse import Pack, PackConfig
from packfuse.cli import app
from packfuse.evaluation import Setting, every_method
from packfuse.evaluation.determination import Determination
from packfuse.evaluation.reports.report import Evaluation
from packfuse.fusion.engine import Engine
from packfuse.weighting.methods import weightings
from tests.support.bytelevel import save_small

Call = Callable[..., Result]

CHOICES = [
    {"question": f"What is {n}?", "A": "Rome", "B": "Paris " * n, "answer": "AB"[n % 2]}
    for n in range(1, 6)
]
TEXTS = [{"text": f"{n} people of the town went home to the sea again"} for n in range(6)]
NUMBERS = [{"question": f"{n} + 1?", "answer": f"{n + 1}"} for n in range(4)]


pytestmark = pytest.mark.usefixtures("loud_afterwards")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [str(save_small(root / name, 300 + 30 * k, k)) for k, name in enumerate(("one", "two"))]


@pytest.fixture
def call(folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command on the two models, in a folder with question files."""
    monkeypatch.chdir(tmp_path)
    for name, lines in (("choices", CHOICES), ("texts", TEXTS), ("numbers", NUMBERS)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def call_(command: str, *arguments: str) -> Result:
        members = ["--model", folders[0], "--model", folders[1]]
        return CliRunner().invoke(app, [command, *members, *arguments])

    return call_


def failed(result: Result) -> str:
    """Standard error of a command that ended with an error message."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    return " ".join(result.stderr.split())


def evaluations(result: Result) -> list[Evaluation]:
    assert result.exit_code == 0, result.output
    return [Evaluation.model_validate(one) for one in json.loads(result.stdout)]


def test_commands_have_help() -> None:
    for command, words in (
        ("eval", ("--setting", "--grid", "--lm-eval", "--limit", "--out", "--task", "--json")),
        ("determine", ("--within", "--length-ratio", "--certain", "--out", "--task", "--json")),
        ("determine", ("--keep-all", "--no-calibrate")),
    ):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert all(word in result.stdout for word in words)


# --- eval


def test_eval_writes_results_report_and_plots(call: Call, folders: list[str]) -> None:
    result = call("eval", "choices.jsonl", "texts.jsonl", "--json", "-o", "out")
    choice, text = evaluations(result)
    pack = Pack.from_pretrained(folders, progress=False)
    methods = [setting.label for setting in every_method(Setting.of(pack))]
    assert [row.label for row in choice.rows] == ["one", "two", *methods]
    assert (choice.questions, text.questions) == (5, 6)
    assert json.loads(Path("out/results.json").read_text()) == json.loads(result.stdout)
    report = Path("out/report.md").read_text()
    assert "## choices.jsonl" in report
    assert "## texts.jsonl" in report
    for name in ("choices", "texts"):
        assert Path(f"out/{name}.png").read_bytes().startswith(b"\x89PNG")
    # The same command resumes from its stored answers.
    before = Path("out/answers.jsonl").read_bytes()
    again = evaluations(call("eval", "choices.jsonl", "texts.jsonl", "--json", "-o", "out"))
    assert [one.rows for one in again] == [choice.rows, text.rows]
    assert Path("out/answers.jsonl").read_bytes() == before


def test_eval_prints_a_table_and_a_conclusion(call: Call) -> None:
    arguments = ["choices.jsonl", "-s", "mixture/sim", "-s", "//prefix/two", "--grid", "2"]
    result = call("eval", *arguments, "--limit", "3", "--seed", "1")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "choices.jsonl: 3 questions" in words
    assert "Bits/byte: best setting" in words
    assert "report.md has all figures" in words
    [found] = json.loads(Path("packfuse-eval/results.json").read_text())
    assert [row["label"] for row in found["rows"]] == [
        "one",
        "two",
        "mixture · sim · bytes · auto",
        "packllm · exact · prefix · two",
        "packllm · one=1 two=0 · bytes · auto",
        "packllm · one=0.5 two=0.5 · bytes · auto",
        "packllm · one=0 two=1 · bytes · auto",
    ]
    assert found["seed"] == 1


def test_eval_of_written_answers_and_of_a_named_task(call: Call) -> None:
    arguments = ["numbers.jsonl", "--task", "number:max_tokens=3,shots=1", "--json"]
    [found] = evaluations(call("eval", *arguments))
    assert found.task == {"name": "number", "shots": 1, "max_tokens": 3}
    assert [row.questions for row in found.rows] == [3, 3, 3, 3]
    assert [row.samples for row in found.rows] == [None, None, 3, None]
    [greedy] = evaluations(call("eval", *arguments, "--samples", "0"))
    assert greedy.sampled is None
    [letters] = evaluations(
        call("eval", "choices.jsonl", "--task", "letter", "-s", "unite", "--json")
    )
    assert letters.task["name"] == "letter"


def test_files_of_one_name_have_a_plot_each(call: Call, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "texts.jsonl").write_text(json.dumps(TEXTS[0]) + "\n")
    found = evaluations(
        call("eval", "texts.jsonl", "other/texts.jsonl", "-s", "", "--json", "-o", "out")
    )
    assert [one.questions for one in found] == [6, 1]
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["texts-2.png", "texts.png"]


def test_a_member_that_fails_ends_with_status_1_and_the_others_results(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packfuse.models.loading.members.self_test", lambda member: None)
    real, calls = LlamaForCausalLM.forward, [0]

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:
            raise RuntimeError("no memory left")
        return real(self, *args, **kwargs)

    forward.__wrapped__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    result = call("eval", "choices.jsonl", "-s", "", "-o", "out")
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "one stopped: member 'one' failed after" in words
    [found] = [Evaluation(**one) for one in json.loads(Path("out/results.json").read_text())]
    assert [bool(row.failed) for row in found.rows] == [True, False, False]
    assert 0 < found.row("one").questions < 5
    assert found.row("two").questions == 5
    assert call("eval", "choices.jsonl", "-s", "", "-o", "out").exit_code == 0


def test_questions_too_long_for_all_members_are_counted(call: Call, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "x" * 900 + " y" * 900}) + "\n")
    result = call("eval", "long.jsonl", "-s", "")
    assert result.exit_code == 0, result.output
    assert "1 questions unread" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on"),
        (["missing.jsonl"], "cannot read missing.jsonl: No such file"),
        (["choices.jsonl", "--task", "nothing"], "unknown task 'nothing'"),
        (["choices.jsonl", "--task", "choice:shots=-1"], "task 'choice': shots"),
        (["choices.jsonl", "--task", "number"], "line 1: field 'answer' holds no number"),
        (["numbers.jsonl", "--sample-temperature", "0"], "at 0 all are the same"),
        (["numbers.jsonl", "--samples", "1"], "1 samples have no majority"),
        (["choices.jsonl", "-s", "nothing"], "unknown fusion rule 'nothing'"),
        (["choices.jsonl", "-s", "///three"], "no member is called 'three'"),
        (["choices.jsonl", "-o", "texts.jsonl"], "cannot use texts.jsonl/answers.jsonl"),
    ],
)
def test_errors_of_eval(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a b"}\n{"text"\n')
    assert message in failed(call("eval", *arguments))
    printed = json.loads(call("eval", *arguments, "--json").stdout)
    assert set(printed["error"]) == {"type", "message", "hint"}


def test_a_grid_needs_two_members(call: Call, folders: list[str]) -> None:
    arguments = ["eval", "--model", folders[0], "choices.jsonl", "--grid", "2"]
    assert "two members or more" in failed(CliRunner().invoke(app, arguments))


# --- determine


def test_determine_writes_a_pack_that_loads(call: Call) -> None:
    options = ["--within", "1e9", "--json", "-o", "my/pack.yaml"]
    result = call("determine", "texts.jsonl", *options)
    assert result.exit_code == 0, result.output
    found = Determination.model_validate_json(result.stdout)
    assert found.candidates[1].gain is not None
    text = Path("my/pack.yaml").read_text()
    assert text.startswith("# Determined on texts.jsonl: 3 questions to choose by, 3 held back")
    assert PackConfig.read("my/pack.yaml") == found.config
    names = [one.name for one in found.candidates if one.stays]
    assert Pack.from_config("my/pack.yaml", progress=False).names == names
    # It resumes from its stored answers, and overwrites its own file.
    before = Path("my/pack.answers.jsonl").read_bytes()
    again = call("determine", "texts.jsonl", *options)
    assert Determination.model_validate_json(again.stdout) == found
    assert Path("my/pack.answers.jsonl").read_bytes() == before
    shown = call("determine", "texts.jsonl", "--within", "0")
    assert shown.exit_code == 0, shown.output
    assert f"{found.candidates[0].name} alone is best" in " ".join(shown.stdout.split())


def test_determine_calibrates_all_models_on_the_lines_that_can_be_read(call: Call) -> None:
    lines = [json.dumps({"text": f"{n} people of the town went to sea"}) for n in range(22)]
    text = "".join(f'{line}\n{{"text": \n' for line in lines)
    Path("many.jsonl").write_text(f"{text}{lines[0]}\n")
    options = ["--keep-all", "-o", "my/pack.yaml"]
    result = call("determine", "many.jsonl", *options)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert "Calibration on 22 questions:" in shown
    assert "23 lines left out:" in shown
    assert "many.jsonl, line 44: not JSON" in shown
    again = call("determine", "many.jsonl", *options, "--json")
    found = Determination.model_validate_json(again.stdout)
    assert found.calibration
    assert len(found.left_out) == 23
    pack = Pack.from_config("my/pack.yaml", progress=False)
    assert pack.names == ["one", "two"]
    assert weightings().dump(pack.runtime.parts.weighting) == found.setting["weighting"]
    if found.calibration.decision == "calibrated":
        weighed = CliRunner().invoke(app, ["weights", "--pack", "my/pack.yaml", "people of"])
        assert "calibrated" in weighed.stdout
        assert "sharpness" in weighed.stdout


def test_a_rule_that_is_not_calibrated_says_so(call: Call) -> None:
    arguments = ["determine", "texts.jsonl", "--fusion", "mixture"]
    assert "the pool of mixture is not calibrated" in failed(call(*arguments))
    assert "--no-calibrate" in failed(call(*arguments))
    assert call(*arguments, "--no-calibrate").exit_code == 0


@pytest.mark.parametrize("kind", ["pack", "folder", "bytes"])
def test_determine_does_not_overwrite_other_files(call: Call, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "pack.yaml"
    if kind == "folder":
        out.mkdir()
    else:
        out.write_bytes(b"members: [a]\n" if kind == "pack" else b"\xff\xfe")
    before = out.is_dir() or out.read_bytes()
    assert "pack.yaml is there already" in failed(call("determine", "texts.jsonl"))
    assert before == (out.is_dir() or out.read_bytes())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "cannot read missing.jsonl"),
        (["texts.jsonl", "--task", "nothing"], "unknown task"),
        (["few.jsonl"], "1 questions are too few"),
        (["texts.jsonl", "--fusion", "nothing"], "unknown fusion rule"),
    ],
)
def test_errors_of_determine(
    call: Call, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "few.jsonl").write_text(json.dumps(TEXTS[0]) + "\n")
    assert message in failed(call("determine", *arguments))
    assert not Path("pack.yaml").exists()


def test_determine_needs_two_candidates(folders: list[str], call: Call) -> None:
    assert call is not None
    result = CliRunner().invoke(app, ["determine", "texts.jsonl", "--model", folders[0]])
    assert "one model makes no choice" in failed(result)
    assert "no candidates" in failed(CliRunner().invoke(app, ["determine", "texts.jsonl"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["choices.jsonl", "--draft", "lookup"], "--draft has no effect"),
        (["choices.jsonl", "--include", "."], "--include has no effect"),
        (["choices.jsonl", "--samples", "5"], "--samples has no effect"),
        (["choices.jsonl", "--sample-temperature", "1"], "--sample-temperature has no effect"),
        (
            ["numbers.jsonl", "--samples", "0", "--sample-temperature", "1"],
            "--sample-temperature has no effect without samples",
        ),
        (["--lm-eval", "piqa", "--task", "letter"], "--task has no effect"),
    ],
)
def test_options_without_effect_are_refused(call: Call, arguments: list[str], words: str) -> None:
    assert words in failed(call("eval", *arguments))


@pytest.mark.filterwarnings("ignore:parallel=True is experimental")
def test_the_packs_own_settings_are_used(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine that scores has the pack's heads and runs members as the pack does."""
    made: list[tuple[Any, Any]] = []
    start = Engine.__init__

    def noted(self: Engine, *arguments: Any, **settings: Any) -> None:
        made.append((settings.get("heads"), settings.get("parallel")))
        start(self, *arguments, **settings)

    monkeypatch.setattr(Engine, "__init__", noted)
    arguments = ("--heads", "pruned", "--parallel", "--setting", "mixture/uniform")
    result = call("eval", "choices.jsonl", *arguments)
    assert result.exit_code == 0, result.output
    assert ("pruned", True) in made
    assert all(heads == "pruned" for heads, parallel in made if parallel)
