"""Progress: bars on terminals, lines elsewhere, nothing where nothing is wanted."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.console import Console

from packfuse.progress import (
    ProgressCallback,
    StageReporter,
    alignment_progress,
    compile_progress,
    question_progress,
    stage_progress,
)
from tests.support import bytelevel


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def output(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


@pytest.mark.parametrize(
    "bar", [alignment_progress(True), compile_progress(True), question_progress("a.jsonl")]
)
def test_without_a_terminal_there_is_no_callback(
    bar: AbstractContextManager[ProgressCallback | None],
):
    with bar as report:
        assert report is None


def test_a_bar_appears_with_the_first_report_and_follows_its_label():
    shown = console(terminal=True)
    with stage_progress(console=shown) as report:
        assert report is not None
        assert "/" not in output(shown)
        report("first", 1, 4)
        report("second", 3, 5)
    assert "second" in output(shown)
    assert "3/5" in output(shown)


def test_a_bar_that_is_not_wanted_is_not_shown():
    shown = console(terminal=True)
    with stage_progress(False, shown) as report:
        assert report is None
    assert output(shown) == ""


def test_stages_are_lines_where_there_is_no_terminal():
    shown = console(terminal=False)
    reporter = StageReporter(console=shown)
    reporter.message("before [it]")
    with reporter.stage("download", 10) as report:
        report(3, 10)
    assert output(shown).split("\n") == ["before [it]", "download ...", ""]


def test_stages_are_bars_on_a_terminal_and_end_complete():
    shown = console(terminal=True)
    with StageReporter(console=shown).stage("download", 10) as report:
        report(12, 10)
    assert "10/10 bytes" in output(shown)
    with StageReporter(console=shown).stage("convert"):
        pass
    assert "convert" in output(shown)


def test_quiet_stages_print_nothing():
    for terminal in (False, True):
        shown = console(terminal)
        reporter = StageReporter(False, shown)
        reporter.message("text")
        with reporter.stage("download", 10) as report:
            report(3, 10)
        assert output(shown) == ""


LOADING = """
import sys
from packfuse import Pack
sources = sys.argv[1:]
pack = Pack.from_pretrained(sources, progress=False)
pack.generate("Once", max_new_tokens=2)
Pack(pack.members, progress=False, alignment="mined")
import pickle
pickle.loads(pickle.dumps(pack))
from transformers.utils import logging
assert logging.is_progress_bar_enabled()
"""


def test_without_progress_nothing_is_printed(tmp_path: Path) -> None:
    """Also none of the bars of the libraries, which do not ask for a terminal."""
    models = [str(bytelevel.save_small(tmp_path / name, 300, 0)) for name in "ab"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADING, *models],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PACKFUSE_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
