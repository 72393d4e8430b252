"""The commands of a chat: each does what it says, and an error of one ends nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from packfuse import Pack
from packfuse.cli import app
from packfuse.cli.saved_chat import SavedChat
from packfuse.errors import DataError
from tests.support.bytelevel import save_small

pytestmark = pytest.mark.usefixtures("loud_afterwards")
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    one = save_small(root / "one", 300, seed=0, chats=True)
    two = save_small(root / "two", 330, seed=1, chats=True)
    return [str(one), str(two)]


@pytest.fixture(scope="module")
def pack(folders: list[str]) -> Pack:
    return Pack.from_pretrained(folders, prefix_cache=0, progress=False)


def chat(folders: list[str], *lines: str, json_lines: bool = True) -> Result:
    members = [word for folder in folders for word in ("--model", folder)]
    arguments = ["chat", *members, "-n", "6", "--prefix-cache", "0", *["--json"] * json_lines]
    return CliRunner().invoke(app, arguments, input="\n".join(lines))


def objects(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_conversation_goes_on_from_a_file(folders: list[str], pack: Pack, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    first, saved = objects(chat(folders, "/system Be brief.", "Hello", f"/save {path}"))
    assert saved == {"saved": str(path), "messages": 2}
    loaded, second = objects(chat(folders, f"/load {path}", "And then?"))
    assert loaded == {"loaded": str(path), "messages": 2}
    history = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "And then?"},
    ]
    assert second["text"] == pack.generate(history, max_new_tokens=6).text
    found = SavedChat.read(path)
    assert [record["weights"] for record in found.records] == [first["record"]["weights"]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read"),
        ("{", "is no conversation"),
        ("[" * 100_000, "is no conversation"),
        ('{"format": "packfuse chat 2"}', "is no conversation"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "is no conversation"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "is no conversation"),
        ('{"mesages": []}', "is no conversation"),
    ],
)
def test_other_files_are_not_loaded_and_not_replaced(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "chat.json"
    if content is None:
        path = tmp_path / "none" / "chat.json"
    else:
        path.write_text(content)
        with pytest.raises(DataError, match="is no conversation"):
            SavedChat().write(path)
        assert path.read_text() == content
    with pytest.raises(DataError, match=words):
        SavedChat.read(path)
    with pytest.raises(DataError, match="cannot write"):
        SavedChat().write(tmp_path / "none" / "chat.json")


def test_a_conversation_may_be_saved_again(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    SavedChat(system="a").write(path)
    SavedChat(system="b").write(path)
    assert SavedChat.read(path).system == "b"
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


def test_weights_can_be_changed_on_the_way(folders: list[str], pack: Pack) -> None:
    lines = ["Hello", "/clear", "/weights O=0.25 two=0.75", "Hello", "/clear"]
    lines += ["/weights uniform", "Hello", "/clear", "/weights auto", "Hello"]
    fitted, fixed, uniform, again = objects(chat(folders, *lines))
    assert fixed["record"]["weights"] == {"one": 0.25, "two": 0.75}
    assert uniform["record"]["weights"] == {"one": 0.5, "two": 0.5}
    assert again["record"]["weights"] == fitted["record"]["weights"]
    expected = pack.generate(HELLO, max_new_tokens=6, weights={"one": 0.25, "two": 0.75})
    assert fixed["text"] == expected.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/weights one=0.5", "sum to 0.5"),
        ("/weights three=1", "'three', which is not a member"),
        ("/weights one=much", "is not a weight"),
        ("/weights unifrm", "'unifrm'.*uniform"),
        ("/save", "/save needs a file"),
        ("/load none.json", "cannot read none.json"),
    ],
)
def test_a_command_that_fails_ends_a_pipe(folders: list[str], line: str, words: str) -> None:
    result = chat(folders, line, "Hello", json_lines=False)
    assert result.exit_code == 1
    assert re.search(words, " ".join(result.stderr.split()))
    assert result.stdout == ""


def test_the_trace_follows_every_answer_until_it_is_off(folders: list[str], pack: Pack) -> None:
    lines = ["/trace", "Hello", "/clear", "/trace", "Hello"]
    traced, plain = objects(chat(folders, *lines))
    steps = pack.generate(HELLO, max_new_tokens=6, trace=True).record.trace or []
    assert [step["text"] for step in traced["record"]["trace"]] == [step.text for step in steps]
    assert plain["record"]["trace"] is None
    shown = chat(folders, "/trace", "Hello", json_lines=False).stderr
    assert all(f"{step.probability:.3f}" in shown for step in steps)


def test_every_answer_ends_with_weights_and_speed(folders: list[str]) -> None:
    result = chat(folders, "Hello", json_lines=False)
    line = " ".join(result.stderr.split())
    assert re.search(r"one \d+% · two \d+% · 6 tokens \(length\) · [\d.]+ tokens/s", line)


@pytest.fixture
def terminal(folders: list[str]) -> Iterator[Any]:
    """A chat in a terminal: what reads until some words, what types a line, and the process."""
    leader, follower = pty.openpty()
    members = [word for folder in folders for word in ("--model", folder)]
    command = [sys.executable, "-m", "packfuse", "chat", *members, "-n", "4"]
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment
    )
    os.close(follower)
    seen = ""

    def until(words: str) -> str:
        nonlocal seen
        while words not in seen:
            assert select.select([leader], [], [], 120)[0], seen
            seen += os.read(leader, 4096).decode(errors="replace")
        before, _, seen = seen.partition(words)
        return before

    yield until, lambda line: os.write(leader, f"{line}\n".encode()), process
    process.kill()
    process.wait()
    os.close(leader)


def test_a_terminal_shows_the_members_and_goes_on_after_an_error(terminal: Any) -> None:
    until, type_line, process = terminal
    shown = " ".join(until("/help lists").split())
    for name, tokens in (("one", 300), ("two", 330)):
        assert re.search(rf"{name} \S+ k {tokens} tokens 512 tokens cpu", shown)
    until("> ")
    type_line("/load none.json")
    until("cannot read none.json")
    type_line("/weights one=2")
    until("sum to 2")
    type_line("Hello")
    until("tokens/s")
    type_line("/exit")
    assert process.wait(timeout=60) == 0
