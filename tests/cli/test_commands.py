"""The command line, in this process where possible, otherwise in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from packfuse import FusionRecord, Pack, Weighing, __version__
from packfuse.alignment import alignments
from packfuse.cli import app
from packfuse.cli.options import TextOptions
from packfuse.cli.screen import Screen
from packfuse.cli.tables import count
from packfuse.fusion.rules import rules
from packfuse.models.inspection import PackReport
from packfuse.paths import CACHE_VARIABLE
from packfuse.registry import parse_spec
from packfuse.starter.plan import StarterPlan
from packfuse.weighting.methods import weightings
from tests.support import pico
from tests.support.bytelevel import byte_tokenizer, save_small

pytestmark = pytest.mark.usefixtures("loud_afterwards")

TEXT = "The capital of France is Paris, and that of Italy is Rome."
COMMANDS = (
    "run", "chat", "weights", "check", "eval", "determine", "starter", "cache", "doctor"
)  # fmt: skip
ANEW = ("--prefix-cache", "0")
Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tiny models with different tokenizers, the second with a chat template."""
    root = tmp_path_factory.mktemp("models")
    one = save_small(root / "one", 300, seed=0)
    two = save_small(root / "two", 330, seed=1, chats=True)
    return [str(one), str(two)]


@pytest.fixture(scope="module")
def pack(folders: list[str]) -> Pack:
    """The pack that commands load, without a prefix cache, as for the first prompt of a command."""
    return Pack.from_pretrained(folders, prefix_cache=0, progress=False)


@pytest.fixture
def invoke(folders: list[str]) -> Invoke:
    """Runs a command on the two tiny models."""
    members = ["--model", folders[0], "--model", folders[1]]

    def call(command: str, *arguments: str, stdin: str | None = None) -> Result:
        return launch(command, *members, *arguments, stdin=stdin)

    return call


def launch(*arguments: str, stdin: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def passed(result: Result) -> str:
    """Standard output of a command that succeeded."""
    assert result.exit_code == 0, result.output
    return result.stdout


def document(result: Result) -> Any:
    """The JSON document on standard output of a command that succeeded."""
    return json.loads(passed(result))


def timeless(record: Any) -> Any:
    """A record as JSON, without its times, which differ between two runs."""
    plain = record.model_dump(mode="json") if isinstance(record, FusionRecord) else dict(record)
    return {name: value for name, value in plain.items() if name != "timings"}


# --- the program itself


def test_version_and_help_come_without_loading_torch():
    code = (
        "import sys\nfrom packfuse.cli import app\n"
        "try: app(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules\n"
    )
    for argument, expected in (("--version", f"packfuse {__version__}"), ("--help", "Usage")):
        with python("-c", code, argument) as process:
            output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert expected in output


def test_help_lists_the_commands():
    text = passed(launch("--help"))
    assert all(re.search(rf"\b{command}\b", text) for command in COMMANDS)
    assert "--install-completion" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str):
    assert "--json" in passed(launch(command, "--help"))


@pytest.mark.parametrize("command", ["run", "chat", "weights"])
def test_help_lists_the_known_rules_weightings_and_alignments(command: str):
    words = set(re.findall(r"[\w-]+", passed(launch(command, "--help"))))
    assert words > {
        name for registry in (rules, weightings, alignments) for name in registry().parts
    }


def test_completion_knows_the_rules(monkeypatch: pytest.MonkeyPatch):
    environment = {"_PACKFUSE_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    environment["COMP_WORDS"] = "packfuse run --fusion pack"
    result = CliRunner().invoke(app, [], prog_name="packfuse", env=environment)
    assert result.stdout.split() == ["packllm"]


def test_parts_with_parameters_can_be_written_in_one_word():
    assert parse_spec("unite") == {"name": "unite"}
    assert parse_spec("opt:normalize=own,shrinkage=0,early_stop=false") == {
        "name": "opt",
        "normalize": "own",
        "shrinkage": 0,
        "early_stop": False,
    }
    for registry in (rules(), alignments()):
        for name in registry.parts:
            assert registry.text(registry.dump(registry.make(name))) == name
    assert rules().text({"name": "unite", "k": 5}) == "unite(k=5)"


def test_counts_are_short():
    assert [count(n) for n in (None, 950, 12_345, 134_515_008, 7_241_732_096)] == [
        "?",
        "950",
        "12.3 k",
        "134.5 M",
        "7.24 B",
    ]


# --- run


def test_run_prints_the_text_and_the_record_apart(invoke: Invoke, pack: Pack):
    expected = pack.generate(TEXT, max_new_tokens=12)
    result = invoke("run", TEXT, "--raw", "-n", "12", "--record")
    assert passed(result) == expected.text + "\n"
    for name, weight in expected.record.weights.items():
        assert re.search(rf"{name} .*\u2588.* {weight:.1%}", result.stderr)
    assert "12 tokens (length)" in result.stderr
    assert "packllm · exact · bytes" in result.stderr
    assert invoke("run", TEXT, "--raw", "-n", "2", "--no-record").stderr == ""


def test_run_ends_with_a_line_of_weights(invoke: Invoke, pack: Pack):
    expected = pack.generate(TEXT, max_new_tokens=12)
    result = invoke("run", TEXT, "--raw", "-n", "12")
    assert passed(result) == expected.text + "\n"
    line, *rest = " ".join(result.stderr.split()).split(" · ")
    assert [line, rest[0]] == [f"{k} {v:.0%}" for k, v in expected.record.weights.items()]
    assert rest[1] == "12 tokens (length)"
    assert rest[2].endswith(" tokens/s")


def test_run_json_is_text_and_record(invoke: Invoke, pack: Pack):
    result = invoke("run", TEXT, "--raw", "-n", "12", "--json", "--trace")
    found = document(result)
    expected = pack.generate(TEXT, max_new_tokens=12, trace=True)
    assert result.stderr == ""
    assert list(found) == ["text", "record"]
    assert found["text"] == expected.text
    assert timeless(found["record"]) == timeless(expected.record)
    assert len(found["record"]["trace"]) == 12
    FusionRecord.model_validate(found["record"])


def test_trace_shows_every_token_and_other_choices_of_members(invoke: Invoke, pack: Pack):
    expected = pack.generate(TEXT, max_new_tokens=6, trace=True).record.trace or []
    shown = "".join(invoke("run", TEXT, "--raw", "-n", "6", "--trace").stderr.split())
    assert len(expected) == 6
    for step in expected:
        assert f"{step.text!r}{step.probability:.3f}".replace(" ", "") in shown
        for name, choice in step.member_choices.items():
            mine = f"{step.member_probabilities[name]:.3f}"
            other = "" if choice == step.text else repr(choice)
            assert f"{mine}{other}".replace(" ", "") in shown


def test_run_writes_a_page(invoke: Invoke, pack: Pack, tmp_path: Path):
    page = tmp_path / "out.html"
    arguments = ("run", TEXT, "--raw", "-n", "6", "--json")
    found = document(invoke(*arguments, "--html", str(page)))
    assert found["record"]["trace"] is None
    assert timeless(found["record"]) == timeless(document(invoke(*arguments))["record"])
    data = page.read_text(encoding="utf-8").split('id="answer">')[1].split("</script>")[0]
    shown = json.loads(data)["record"]
    assert timeless(shown) == timeless(pack.generate(TEXT, max_new_tokens=6, trace=True).record)


def test_a_page_in_no_folder_is_refused_before_anything_is_loaded(tmp_path: Path):
    page = str(tmp_path / "missing" / "out.html")
    found = launch("run", "x", "--model", "absent/model", "--html", page, "--json")
    assert_error(found, "ConfigError", "no folder")


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--fusion", "unite:k=3"], {"fusion": {"name": "unite", "k": 3}}),
        (["--weighting", "sim:tau=0.5"], {"weighting": {"name": "sim", "tau": 0.5}}),
        (["-w", "two=0.75", "-w", "one=0.25"], {"weights": {"one": 0.25, "two": 0.75}}),
        (["--temperature", "0.9", "--seed", "7", "--top-k", "50", "--top-p", "0.9"], None),
        (
            ["--gate", "nudge:threshold=0.4,leader=two"],
            {"gate": {"name": "nudge", "threshold": 0.4, "leader": "two"}},
        ),
        (["--stop", "e", "--stop", "zz"], {"stop": ["e", "zz"]}),
        (["--repetition-penalty", "1.5"], {"repetition_penalty": 1.5}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_reach_the_pack(invoke: Invoke, pack: Pack, arguments, settings):
    settings = settings or {"temperature": 0.9, "seed": 7, "top_k": 50, "top_p": 0.9}
    found = document(invoke("run", TEXT, "--raw", "-n", "10", "--json", *arguments))
    expected = pack.generate(TEXT, max_new_tokens=10, **settings)
    assert found["text"] == expected.text
    assert timeless(found["record"]) == timeless(expected.record)


def test_options_that_are_not_given_are_left_to_the_pack():
    assert TextOptions().arguments() == {"max_new_tokens": 256}


def test_the_reference_can_be_named(invoke: Invoke):
    for name in ("one", "two"):
        found = document(invoke("run", TEXT, "--raw", "-n", "2", "--json", "--reference", name))
        assert found["record"]["reference"] == name


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["Once upon"], None, "Once upon"),
        (["Once upon"], "a time\n", "Once upon\n\na time"),
        (["-"], "a time\n\n", "a time\n"),
        ([], "a time", "a time"),
    ],
    ids=["argument", "both", "dash", "stdin"],
)
def test_prompts_come_from_the_argument_and_standard_input(
    invoke: Invoke, pack: Pack, arguments, stdin, prompt
):
    found = document(invoke("run", "--raw", *arguments, "-n", "3", "--json", stdin=stdin))
    expected = pack.generate(prompt, max_new_tokens=3)
    assert found["text"] == expected.text
    assert found["record"]["usage"] == expected.record.usage.model_dump()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], [{"role": "user", "content": TEXT}]),
        (["--chat"], [{"role": "user", "content": TEXT}]),
        (
            ["--system", "Be brief."],
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}],
        ),
    ],
    ids=["default", "chat", "system"],
)
def test_run_can_chat(invoke: Invoke, pack: Pack, arguments, messages):
    found = document(invoke("run", TEXT, "-n", "5", "--json", *arguments))
    expected = pack.generate(messages, max_new_tokens=5)
    assert found["text"] == expected.text
    assert timeless(found["record"]) == timeless(expected.record)


def test_a_pack_file_is_run_and_its_settings_can_be_overridden(
    folders: list[str], pack: Pack, tmp_path: Path
):
    path = tmp_path / "pack.yaml"
    path.write_text(json.dumps({"members": folders, "fusion": "mixture", "reference": "two"}))
    found = document(launch("run", TEXT, "--raw", "-n", "4", "--json", "--pack", str(path)))[
        "record"
    ]
    assert (found["fusion"]["name"], found["reference"]) == ("mixture", "two")
    changes = ["--fusion", "unite", "--reference", "one", "--weighting", "uniform"]
    found = document(launch("run", TEXT, "--raw", "-n", "4", "--json", "-p", str(path), *changes))[
        "record"
    ]
    assert (found["fusion"]["name"], found["reference"]) == ("unite", "one")
    assert found["weights"] == {"one": 0.5, "two": 0.5}


def test_a_chat_is_read_once_unless_the_prefix_cache_is_off(invoke: Invoke):
    for setting, cached_expected in (("auto", True), ("1000000", True), ("0", False)):
        stdin = "Hello there, who are you?\nAnd where?"
        shown = passed(
            invoke("chat", "-n", "2", "--json", "--prefix-cache", setting, stdin=stdin)
        ).splitlines()
        cached = [json.loads(line)["record"]["usage"]["cached_tokens"] for line in shown]
        assert cached[0] == 0
        assert (cached[1] > 0) == cached_expected


# --- errors

BAD_REQUESTS = {
    "rule": (["x", "--fusion", "unit"], "ConfigError", r"'unit'.*mixture, packllm, unite"),
    "weighting": (["x", "--weighting", "bst"], "ConfigError", r"'bst'.*exact, .*opt, sim, top1"),
    "alignment": (["x", "--alignment", "byte"], "ConfigError", r"'byte'.*known: bytes"),
    "parameter": (["x", "--fusion", "unite:k=0"], "ConfigError", r"'unite': k: .*parameters: k"),
    "size": (["x", "--prefix-cache", "much"], "ConfigError", r"'much'.*bytes.*auto"),
    "no value": (["x", "--fusion", "unite:k"], "ConfigError", r"'k' in 'unite:k' has no value"),
    "bad value": (["x", "--fusion", "unite:k=["], "ConfigError", r"'\[' in .* is no value"),
    "reference": (["x", "--reference", "three"], "ConfigError", r"'three'.*one, two"),
    "weight": (["x", "-w", "one"], "ConfigError", r"'one' is not a weight"),
    "sum": (["x", "-w", "one=0.5"], "WeightsError", r"sum to 0\.5"),
    "stranger": (["x", "-w", "three=1"], "WeightsError", r"'three'.*one, two"),
    "two weightings": (["x", "-w", "one=1", "--weighting", "opt"], "ConfigError", "exclude"),
    "empty": ([""], "PromptError", "prompt is empty"),
    "long": (["x " * 600], "PromptError", r"long for member '\w+', which can read 512.*shorten"),
    "raw system": (["x", "--raw", "--system", "y"], "ConfigError", "exclude"),
    "two packs": (["x", "--pack", "pack.yaml"], "ConfigError", "exclude"),
}


def assert_error(result: Result, kind: str, words: str) -> None:
    """The error is on stderr, without a traceback, and as JSON on stdout."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert re.search(words, " ".join(result.stderr.split()))
    assert result.stderr.startswith("error: ")
    error = json.loads(result.stdout)["error"]
    assert error["type"] == kind
    assert re.search(words, " ".join(f"{error['message']} {error['hint']}".split()))


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests_are_errors(invoke: Invoke, case: str):
    arguments, kind, words = BAD_REQUESTS[case]
    assert_error(invoke("run", *arguments, "--json"), kind, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("members: [", r"pack\.yaml is not YAML"),
        ("", r"pack\.yaml does not hold a mapping.*members:"),
        ("members: [a]\nfusoin: unite", r"fusoin.*fields: .*fusion"),
        ("members: []", r"members: .*at least 1"),
        (None, r"cannot read .*pack\.yaml"),
    ],
    ids=["broken", "empty", "misspelled", "no members", "missing"],
)
@pytest.mark.parametrize("command", [["run", "x"], ["weights", "x"], ["chat"], ["check"]])
def test_bad_pack_files_are_errors(tmp_path: Path, command, content, words: str):
    path = tmp_path / "pack.yaml"
    if content is not None:
        path.write_text(content)
    assert_error(launch(*command, "--pack", str(path), "--json"), "ConfigError", words)


@pytest.mark.parametrize("command", [["run", "x"], ["weights", "x"], ["chat"]])
def test_the_error_for_a_missing_model_names_it(folders: list[str], command):
    models = ["--model", folders[0], "--model", "absent/has-this-model", "--json"]
    assert_error(launch(*command, *models), "LoadError", "absent/has-this-model.*packfuse check")


def test_errors_are_red_where_there_is_color():
    environment = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "NO_COLOR": None}
    result = CliRunner().invoke(app, ["run", "x", "--fusion", "unit"], env=environment)
    assert result.stderr.startswith("\x1b[1;31merror")
    assert result.stdout == ""


# --- chat


def test_chat_keeps_and_clears_the_conversation(invoke: Invoke, pack: Pack):
    lines = ["Hello", "And then?", "/clear", "Hello", "/system Be brief.", "Hello", "/exit", "no"]
    result = invoke("chat", "-n", "6", "--json", *ANEW, stdin="\n".join(lines))
    answers = [json.loads(line) for line in passed(result).splitlines()]
    history: list[dict[str, str]] = []
    expected = []
    for line in ("Hello", "And then?", "", "Hello", "*Be brief.", "Hello"):
        if not line or line[0] == "*":
            history = [{"role": "system", "content": line[1:]}] if line else []
            continue
        history.append({"role": "user", "content": line})
        expected.append(pack.generate(history, max_new_tokens=6))
        history.append({"role": "assistant", "content": expected[-1].text})
    assert [answer["text"] for answer in answers] == [answer.text for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert timeless(answer["record"]) == timeless(other.record)
    assert expected[0].text != expected[1].text


def test_chat_shows_the_record_and_the_weights(invoke: Invoke, pack: Pack):
    stdin = "/record\n/weights\n\nHello there\n/record\n/weights\n/dance\n/help"
    result = invoke("chat", "-n", "4", "--json", *ANEW, stdin=stdin)
    answer, record, weighing = map(json.loads, passed(result).splitlines())
    assert record == answer["record"]
    history = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": answer["text"]},
    ]
    assert Weighing.model_validate(weighing).weights == pack.weigh(history).weights
    expected_notes = [
        "there is no answer yet",
        "there is no message yet",
        "there is no /dance",
        "/clear",
    ]
    assert all(text in result.stderr for text in expected_notes)


def test_names_are_shown_as_they_are(folders: list[str], tmp_path: Path):
    path = tmp_path / "pack.yaml"
    names = ("a[4bit]", "b [/x] :smile:")
    members = [{"model": f, "name": n} for f, n in zip(folders, names, strict=True)]
    path.write_text(json.dumps({"members": members}))
    for option in ([], ["--record"], ["--trace"]):
        shown = launch("run", TEXT, "--raw", "-n", "2", "--pack", str(path), *option)
        assert passed(shown)
        assert all(name in " ".join(shown.stderr.split()) for name in names)
    weighed = " ".join(passed(launch("weights", TEXT, "--pack", str(path))).split())
    checked = " ".join(passed(launch("check", "--pack", str(path))).split())
    assert all(name in text for name in names for text in (weighed, checked))


def test_chat_prints_tables(invoke: Invoke, pack: Pack):
    expected = pack.generate([{"role": "user", "content": "Hello"}], max_new_tokens=4)
    output = passed(invoke("chat", "-n", "4", stdin="Hello\n/record\n/weights\n"))
    assert output.startswith(expected.text + "\n")
    assert "4 tokens (length)" in output
    assert all(name in output for name in ("weighting", "exact", "uniform"))


def test_piped_chat_ends_at_an_error(invoke: Invoke):
    assert_error(
        invoke("chat", "--json", stdin="Hello " * 600),
        "PromptError",
        r"which can read 512",
    )


# --- weights


def test_weights_show_every_weighting(invoke: Invoke, pack: Pack):
    expected = pack.weigh(TEXT)
    found = Weighing.model_validate(document(invoke("weights", TEXT, "--json")))
    assert found == expected
    output = passed(invoke("weights", TEXT))
    for label, weights in expected.weights.items():
        block = output[output.index(f"\n{label} ") :]
        for name, weight in weights.items():
            assert re.match(rf"[^%]*{name}[^%]* {weight:.1%}", block)
            block = block[block.index("%") + 1 :]
    assert expected.prompt_loss is not None
    assert all(f"{loss:.3f}" in output for loss in expected.prompt_loss.values())


def test_weights_show_the_named_weighting(invoke: Invoke, pack: Pack):
    opt = {"name": "opt", "shrinkage": 0}
    found = document(invoke("weights", TEXT, "--weighting", "opt:shrinkage=0", "--json"))
    assert found["weights"] == pack.weigh(TEXT, [opt]).weights
    found = document(invoke("weights", TEXT, "-w", "two=1", "--json"))
    assert found["weights"] == {"fixed": {"one": 0, "two": 1}}
    found = document(invoke("weights", "--chat", "--fusion", "mixture", "--json", stdin=TEXT))
    chat = [{"role": "user", "content": TEXT}]
    assert Weighing.model_validate(found) == pack.weigh(chat, fusion="mixture")


# --- check


def test_check_reports_every_model_and_fails_for_one(folders: list[str]):
    found = document(launch("check", *folders, "--json"))
    assert PackReport.model_validate(found).ok
    assert [model["name"] for model in found["models"]] == ["one", "two"]
    result = launch("check", folders[0], "absent/has-this-model", folders[1], "--json")
    assert result.exit_code == 1
    report = PackReport.model_validate_json(result.stdout)
    assert [bool(model.problems) for model in report.models] == [False, True, False]
    assert report.pairs == PackReport.model_validate(found).pairs


def test_check_prints_a_table(folders: list[str]):
    result = launch("check", *folders, "absent/has-this-model", "--dtype", "bfloat16")
    assert result.exit_code == 1
    output = " ".join(result.stdout.split())
    for row in (
        "one two has-this-model",
        "architecture LlamaForCausalLM LlamaForCausalLM ?",
        "memory 78 kB 86 kB ?",
        "context window 512 tokens 512 tokens ?",
        "chat template no yes ?",
        "one and two share 90.9% of all their tokens; 100.0% of the first's have a twin",
        "absent/has-this-model: OSError",
        "has-this-model cannot join a pack.",
    ):
        assert row in output


def test_check_computes_the_memory_of_answers(folders: list[str]):
    found = document(launch("check", *folders, "--context", "64", "--rows", "2", "--json"))
    sizes = [model["cache"]["per_token"] for model in found["models"]]
    assert min(sizes) > 0
    assert found["answers"] == {
        "context": 64,
        "rows": 2,
        "cache_bytes": 2 * 64 * sum(sizes),
        "unknown": [],
    }
    output = " ".join(launch("check", *folders, "--context", "64", "--rows", "2").stdout.split())
    assert "KV cache, a token" in output
    assert "KV caches of 2 answers of 64 tokens each" in output
    assert document(launch("check", *folders, "--json"))["answers"] is None
    assert_error(launch("check", *folders, "--rows", "2", "--json"), "ConfigError", "--context")


def test_check_reads_pack_files(folders: list[str], tmp_path: Path):
    path = tmp_path / "pack.yaml"
    members = [{"model": folders[0], "name": "first", "dtype": "float64"}, folders[1]]
    path.write_text(json.dumps({"members": members, "dtype": "float16"}))
    models = document(launch("check", "--pack", str(path), "--json"))["models"]
    assert [model["name"] for model in models] == ["first", "two"]
    assert [model["memory_bytes"] / model["parameters"] for model in models] == [8, 2]
    assert_error(
        launch("check", folders[0], "--pack", str(path), "--json"), "ConfigError", "exclude"
    )


def test_check_without_models_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    assert_error(launch("check", "--json"), "ConfigError", "packfuse starter")
    assert not (tmp_path / "cache").exists()


# --- starter

SHARED = 0.798
"""Share of SmolLM2's tokens that Qwen2.5's vocabulary has, measured before."""


def test_the_plan_has_terms_and_sizes_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    output = " ".join(passed(launch("starter", "--plan")).split())
    terms = ("unknown publisher", "checked by SHA-256", "Apache-2.0")
    for words in (*terms, "To download: 570 MB", "not yet", "with --expert"):
        assert words in output
    small = " ".join(passed(launch("starter", "small", "--plan")).split())
    for words in ("Gemma Terms of Use", "To download: 331 MB"):
        assert words in small
        assert words not in output
    assert_error(launch("starter", "smal", "--plan", "--json"), "ConfigError", "'small'")
    plan = StarterPlan.model_validate(document(launch("starter", "--plan", "--json")))
    assert not plan.ready
    assert plan.expert is not None
    assert plan.expert.ready
    assert plan.expert.name in output
    assert not (tmp_path / "cache").exists()


def test_the_starter_pack_is_reported_as_ready(default_folders: dict[str, Path]):
    plan = StarterPlan.model_validate(document(launch("starter", "--json")))
    assert plan.ready
    assert {model.name: model.folder for model in plan.models} == default_folders
    assert "is ready in" in passed(launch("starter"))


def test_pairs_on_the_hub_have_commands_that_can_be_pasted():
    found = document(launch("starter", "--from-hub", "--json"))["pairs"]
    assert [pair["size"] for pair in found] == ["1B", "3B", "8B"]
    shown = passed(launch("starter", "--from-hub")).replace("\\\n    ", "")
    for pair in found:
        first, second = pair["models"]
        assert f"  packfuse chat --model {first} --model {second}\n" in shown
        assert pair["memory_bytes"] == round(sum(pair["parameters"]) * 2e9)
        low, high = sorted(pair["parameters"])
        assert high < 1.12 * low


def test_check_of_the_starter_pack(default_folders: dict[str, Path]):
    report = PackReport.model_validate(document(launch("check", "--json")))
    assert report.ok
    assert [model.name for model in report.models] == list(default_folders)
    assert [model.chat_template for model in report.models] == [True, True]
    assert report.models[1].parameters == 134_515_008
    assert report.pairs[0].twins["SmolLM2-135M-Instruct"] == pytest.approx(SHARED, abs=0.002)


# --- in a process of its own


def python(*arguments: str) -> subprocess.Popen[str]:
    """Start Python with nothing on its standard input."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A process in the background ignores Ctrl-C, and so would its child processes.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([sys.executable, *arguments], stdin=subprocess.DEVNULL, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_folders")
def test_the_starter_pack_answers_by_default():
    with python("-m", "packfuse", "run", "The capital of France is", "-n", "12") as process:
        output, errors = process.communicate()
    assert process.returncode == 0
    assert "Paris" in output
    assert "SmolLM2-135M-Instruct" in errors
    assert "Traceback" not in errors
    assert "Warning" not in errors


def test_json_is_alone_on_both_streams(folders: list[str]):
    members = ["--model", folders[0], "--model", folders[1]]
    with python("-m", "packfuse", "run", TEXT, "--raw", *members, "-n", "3", "--json") as process:
        output, errors = process.communicate()
    assert list(json.loads(output)) == ["text", "record"]
    assert errors == ""


def endless(folder: Path) -> list[str]:
    """A command that would generate for an hour: the model has no end token."""
    tokenizer = byte_tokenizer(300)
    tokenizer.eos_token = None
    model = pico.tiny_model(tokenizer, seed=0, context=200_000)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ["-m", "packfuse", "run", TEXT, "--raw", "-m", str(folder), "-n", "190000"]


def test_a_pipe_that_is_closed_early_ends_it_without_a_crash(tmp_path: Path):
    with python(*endless(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_ctrl_c_stops_generation_without_output(tmp_path: Path):
    with python(*endless(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130


def test_a_terminal_gets_no_control_characters():
    screen = Screen()
    text = "a\tb\n\x1b[2Jc\x07\x9b\r é 中"
    assert screen._shown(text) == text
    screen.out = Console(force_terminal=True)
    assert screen._shown(text) == "a\tb\n\ufffd[2Jc\ufffd\ufffd\ufffd é 中"
