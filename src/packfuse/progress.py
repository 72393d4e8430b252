"""Progress bars, on standard error and only where somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from packfuse.relation import Progress as Report


@contextmanager
def alignment_progress(shown: bool) -> Iterator[Report | None]:
    """A bar that appears once an alignment has to be made (cached ones take no time)."""
    with _bar("Aligning vocabularies", shown) as report:
        yield report


@contextmanager
def question_progress(name: str) -> Iterator[Report | None]:
    """A bar over the questions of one file, over all that is compared."""
    with _bar(name, True) as report:
        yield report


@contextmanager
def _bar(label: str, shown: bool) -> Iterator[Report | None]:
    """A bar that appears with the first report, where somebody looks."""
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

        def report(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(label, total=total)
            bar.update(task, completed=done)

        yield report
