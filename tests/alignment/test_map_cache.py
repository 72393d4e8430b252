"""Vocabulary maps on disk: kept, found again, never trusted blindly."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from packfuse.alignment.map_cache import cached_map
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing
from tests.support.disks import full_disk

TABLE = np.array([[0, 1], [2, 3], [40_000, 262_143]])


class Maker:
    """Makes the table and counts how often it had to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> NDArray[np.int64]:
        self.calls += 1
        return TABLE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PACKFUSE_CACHE", str(tmp_path))
    return tmp_path / "alignments"


@pytest.fixture
def pair() -> Iterator[tuple[Vocabulary, Vocabulary]]:
    yield fusing.bpe("the", name="one"), fusing.bpe("and", name="other")


Pair = tuple[Vocabulary, Vocabulary]


def test_a_map_is_made_once(folder: Path, pair: Pair) -> None:
    make = Maker()
    first, second = (cached_map("kind", 1, *pair, make) for _ in range(2))
    assert make.calls == 1
    assert np.array_equal(first, TABLE)
    assert np.array_equal(second, TABLE)
    assert second.dtype == np.int64
    assert [file.suffix for file in folder.iterdir()] == [".safetensors"]


def test_everything_that_matters_is_in_the_key(folder: Path, pair: Pair) -> None:
    one, other = pair
    make = Maker()
    changed = fusing.bpe("the", "then", name="one")
    wider = Vocabulary(one.tokenizer, 999)
    for number, arguments in enumerate(
        [
            ("kind", 1, one, other),
            ("kind", 2, one, other),
            ("else", 1, one, other),
            ("kind", 1, other, one),
            ("kind", 1, changed, other),
            ("kind", 1, wider, other),
        ],
        start=1,
    ):
        cached_map(*arguments, make)
        assert make.calls == number
        assert len(list(folder.iterdir())) == number


def test_names_play_no_part(folder: Path, pair: Pair) -> None:
    make = Maker()
    cached_map("kind", 1, *pair, make)
    cached_map("kind", 1, fusing.bpe("the", name="x"), fusing.bpe("and", name="y"), make)
    assert make.calls == 1


class Trap:
    """Unpickling it would leave a trace."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"not a map", pickle.dumps({"map": TABLE}), None],
    ids=["empty", "no map", "text", "pickle", "cut"],
)
def test_a_broken_file_is_made_anew_with_a_warning(
    folder: Path, pair: Pair, content: bytes | None
) -> None:
    make = Maker()
    cached_map("kind", 1, *pair, make)
    [file] = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    with pytest.warns(RuntimeWarning, match=r"is broken and is rebuilt"):
        again = cached_map("kind", 1, *pair, make)
    assert make.calls == 2
    assert np.array_equal(again, TABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_map("kind", 1, *pair, make)
    assert make.calls == 2


def test_a_pickle_is_never_run(
    folder: Path, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make = Maker()
    cached_map("kind", 1, *pair, make)
    [file] = folder.iterdir()
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.warns(RuntimeWarning, match="broken"):
        cached_map("kind", 1, *pair, make)
    assert not (tmp_path / "touched").exists()


def test_a_file_of_another_pair_is_not_taken(folder: Path, pair: Pair) -> None:
    make = Maker()
    cached_map("kind", 1, *pair, make)
    [file] = folder.iterdir()
    foreign = file.read_bytes()
    cached_map("kind", 2, *pair, make)
    [newer] = set(folder.iterdir()) - {file}
    newer.write_bytes(foreign)
    with pytest.warns(RuntimeWarning, match="it was made for"):
        cached_map("kind", 2, *pair, make)
    assert make.calls == 3


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(folder: Path, pair: Pair) -> None:
    make = Maker()
    folder.write_text("a file where the folder should be")
    for calls in (1, 2):
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            assert np.array_equal(cached_map("kind", 1, *pair, make), TABLE)
        assert make.calls == calls


def test_what_fails_leaves_nothing_behind(folder: Path, pair: Pair) -> None:
    def fail() -> NDArray[np.int64]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_map("kind", 1, *pair, fail)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("trouble", ["full", "too long", "unreadable"])
def test_a_cache_that_fails_costs_nothing_but_time(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    root = tmp_path / ("x" * 300 if trouble == "too long" else "cache")
    monkeypatch.setenv("PACKFUSE_CACHE", str(root))
    if trouble == "unreadable":
        root.mkdir()
        (root / "alignments").touch(mode=0)
    disk = full_disk() if trouble == "full" else nullcontext()
    with disk, pytest.warns(RuntimeWarning, match="cannot be written"):
        assert np.array_equal(cached_map("kind", 1, *pair, Maker()), TABLE)
    assert not list(tmp_path.rglob(".*"))
