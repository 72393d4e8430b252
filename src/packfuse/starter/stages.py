"""Progress of long preparations: one line a stage, on stderr, or nothing at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

Report = Callable[[int], None]
"""Takes the bytes done so far in a stage."""


class Stages:
    """Shows stages one after the other.

    Args:
        show: False keeps quiet.
        console: Where to; stderr as it is now, so that a later redirection does not move the bars.
    """

    def __init__(self, show: bool = True, console: Console | None = None) -> None:
        """Bind the console."""
        self._show = show
        self._console = console or Console(file=sys.stderr)

    def say(self, text: str) -> None:
        """Print one paragraph of plain text."""
        if self._show:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, label: str, total: int | None = None) -> Iterator[Report]:
        """Show one stage while the block runs: a bar over `total` bytes, or a spinner without one.

        Yields:
            A function to call with the bytes done so far.
        """
        if self._show and not self._console.is_terminal:
            self.say(f"{label} ...")
        bar = Progress(
            *_columns(total),
            console=self._console,
            disable=not (self._show and self._console.is_terminal),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(
                task, completed=done if total is None else min(done, total)
            )
            # A stage that was skipped or was a little shorter than expected still ends whole.
            bar.update(task, total=total or 1, completed=total or 1)


def _columns(total: int | None) -> list[ProgressColumn]:
    shown: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    if total is not None:
        shown += [BarColumn(bar_width=30), DownloadColumn()]
    return [*shown, TimeElapsedColumn()]
