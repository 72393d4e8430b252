"""The journal loses nothing, whatever stops the process, and takes no file for its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packfuse.errors import DataError
from packfuse.evaluation.journal import Journal, digest
from tests.support.disks import full_disk

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False)),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=6,
)
ENTRIES = st.lists(st.tuples(st.text(max_size=4), JSON), max_size=6)


def kept(path: Path, keys: list[str]) -> dict[str, Any]:
    with Journal(path) as journal:
        return {key: journal.get(key) for key in keys}


@given(ENTRIES)
def test_what_was_added_is_found_again(tmp_path_factory, entries: list[tuple[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("journal") / "deep" / "journal.jsonl"
    with Journal(path) as journal:
        for key, value in entries:
            journal.add(key, value)
            assert journal.get(key) == value
    known = dict(entries)
    assert kept(path, list(known)) == known
    assert path.read_bytes().count(b"\n") == len(entries)


def test_an_answer_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("a", {"right": True})
        assert path.read_text() == '["a", {"right": true}]\n'
        assert journal.get("b") is None


def test_a_journal_cut_off_anywhere_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add("one", "日本")
        journal.add("two", ["ö\n", 2])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path) as journal:
            assert journal.get("one") == ("日本" if size >= first else None)
            assert journal.get("two") == (["ö\n", 2] if size == len(whole) else None)
            journal.add("three", 3)
        assert kept(path, ["one", "three"]) == {
            "one": "日本" if size >= first else None,
            "three": 3,
        }


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        '{"question": "Why?", "answer": "Because."}\n',
        '["a", 1]\n["b", 2, 3]\n',
        "[1, 2]\n",
        "7\n",
        '"ab"\n',
        "\n",
        "a file of one line without an end",
        '{"question": "Why?"}',
        '["a", 1]\nsomething else',
        "\udcff\n",
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "journal.jsonl"
    before = content.encode(errors="surrogateescape")
    path.write_bytes(before)
    with pytest.raises(DataError, match=r"journal\.jsonl, line \d: not an entry"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "journal.jsonl"):
        with pytest.raises(DataError, match="cannot use"):
            Journal(path)


PARTS = st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_digests_tell_texts_apart(parts: list[str], others: list[str]) -> None:
    assert (digest(*parts) == digest(*others)) == (parts == others)
    assert digest(*parts) == digest(*parts)
    assert len(digest(*parts)) == 32


WRITER = """
import sys
from pathlib import Path
from packfuse.errors import DataError
from packfuse.evaluation.journal import Journal
try:
    with Journal(Path(sys.argv[1])) as journal:
        print("open", flush=True)
        sys.stdin.read()
        for number in range(300):
            journal.add(f"{sys.argv[2]}-{number}", number)
except DataError as error:
    print(error, flush=True)
"""


def test_two_processes_lose_nothing_of_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(path), name]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start("first")
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    second, _ = start("second").communicate("", timeout=60)
    assert "is in use by another process" in second
    with pytest.raises(DataError, match="in use"):
        Journal(path)
    first.communicate("", timeout=60)
    third, _ = start("third").communicate("", timeout=60)
    assert third == "open\n"
    keys = [f"{name}-{number}" for name in ("first", "third") for number in range(300)]
    assert list(kept(path, keys).values()) == [*range(300)] * 2


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a file/journal"])
def test_a_journal_that_cannot_be_is_a_typed_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(DataError, match="cannot use"):
        Journal(tmp_path / name)


def test_a_full_disk_is_a_typed_error(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        with full_disk(), pytest.raises(DataError, match="cannot use"):
            journal.add("a", "x" * 100)
        assert journal.get("a") is None
