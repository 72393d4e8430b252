"""`packfuse batch` as a process of its own, which is killed and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from packfuse import Pack
from packfuse.cli import app
from tests.support import pico

MESSAGES = [{"role": "user", "content": "Hello"}]
LONG = 400
"""Tokens of the last answers: they take seconds, so that a signal arrives before the end."""
LINES: list[dict[str, Any]] = [
    *({"prompt": f"The number {n} is", "max_tokens": LONG if n > 8 else 30} for n in range(12)),
    {"custom_id": "chat", "messages": MESSAGES, "max_tokens": LONG},
    {"custom_id": "bad", "prompt": "x", "max_tokens": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and requests."""
    made = tmp_path_factory.mktemp("batch")
    tokenizer = pico.real_tokenizer("mistral")
    pico.tiny_model(tokenizer, seed=1).save_pretrained(made / "model")
    tokenizer.save_pretrained(made / "model")
    (made / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return made


def started(
    folder: Path, target: Path, *options: str, source: str = "in.jsonl"
) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "packfuse", "batch", source, str(target), "--json"),
        *("--model", "model", "--max-rows", "2", *options),
    ]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_batch_that_is_killed_loses_and_doubles_nothing(folder: Path) -> None:
    target = folder / "out.jsonl"
    for killed_at in (0, 5):
        process = started(folder, target, *(["--resume"] if killed_at else []))
        while not target.exists() or whole_lines(target) < killed_at:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert killed_at <= whole_lines(target) < len(LINES)
    # A process that was killed while it wrote leaves half a line.
    content = target.read_bytes()
    half = len(content) - 40
    target.write_bytes(content[:half])
    process = started(folder, target, "--resume")
    printed, errors = process.communicate(timeout=120)
    summary = json.loads(printed)
    assert process.returncode == 1, errors  # one line has an error for an answer
    assert (summary["lines"], summary["answered"], summary["failed"]) == (14, 13, 1)
    assert (summary["resumed"], summary["repaired"]) == (content[:half].count(b"\n"), True)
    found = [json.loads(line) for line in target.read_text().splitlines()]
    names = [line.get("custom_id", f"line-{number}") for number, line in enumerate(LINES, 1)]
    assert Counter(one["custom_id"] for one in found) == Counter(names)
    answers = {one["custom_id"]: one["response"] for one in found}
    assert answers["bad"]["body"]["error"]["param"] == "max_tokens"
    pack = Pack.from_pretrained([str(folder / "model")], progress=False)
    for name, line in zip(names[:12], LINES, strict=False):
        alone = pack.generate(line["prompt"], max_new_tokens=line["max_tokens"])
        body = answers[name]["body"]
        assert body["choices"][0]["text"] == alone.text
        assert body["fusion"]["weights"] == alone.record.weights
    alone = pack.generate(MESSAGES, max_new_tokens=LONG)
    assert answers["chat"]["body"]["choices"][0]["message"]["content"] == alone.text


def invoked(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["batch", *arguments])


def test_files_are_checked_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    source, empty, there = folder / "in.jsonl", tmp_path / "empty.jsonl", tmp_path / "there.jsonl"
    empty.write_text("\n")
    there.write_text("{}\n")
    missing = ["--model", str(tmp_path / "no-model")]
    for arguments, message in (
        ([empty, tmp_path / "out"], "empty.jsonl is empty"),
        ([source, there], "there.jsonl is there already"),
        ([source, there, "--resume"], "there.jsonl, line 1: not an answer of a batch"),
        ([source, source], "is input and output"),
    ):
        done = invoked(*map(str, arguments), *missing)
        assert done.exit_code == 1
        assert message in " ".join(done.stderr.split())
    assert there.read_text() == "{}\n"


def test_a_batch_that_is_interrupted_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    # Enough lines that it is not over before the signal arrives.
    many = [{**LINES[0], "custom_id": f"one of many {n}"} for n in range(1000)]
    (folder / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    running = started(folder, target, source="many.jsonl")
    while whole_lines(target) < 1:
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert "--resume goes on with it" in " ".join(errors.split())
    assert running.returncode != 0
    assert target.read_bytes().endswith(b"\n")
