"""Progress bars, on standard error and only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""
Stage = Callable[[str, int, int], None]
"""Told (what, done, in all)."""


@contextmanager
def alignment_progress(shown: bool) -> Iterator[ProgressCallback | None]:
    """A bar that appears once an alignment has to be made (cached ones take no time)."""
    with _bar(shown) as report:
        yield report and (lambda done, total: report("Aligning vocabularies", done, total))


@contextmanager
def compile_progress(shown: bool) -> Iterator[ProgressCallback | None]:
    """A bar that appears once something has to be compiled."""
    with _bar(shown) as report:
        yield report and (lambda done, total: report("Compiling steps", done, total))


@contextmanager
def question_progress(name: str) -> Iterator[ProgressCallback | None]:
    """A bar over the questions of one file, over all that is compared."""
    with _bar(True) as report:
        yield report and (lambda done, total: report(name, done, total))


@contextmanager
def stage_progress() -> Iterator[Stage | None]:
    """A bar for one stage after the other: (what, done, total)."""
    with _bar(True) as report:
        yield report


@contextmanager
def _bar(shown: bool) -> Iterator[Stage | None]:
    """A bar that appears with the first report, where somebody looks, and follows its label."""
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = None

        def report(label: str, done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(label)
            bar.update(task, description=label, completed=done, total=total)

        yield report
