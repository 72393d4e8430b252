"""Progress of long operations: the callback types, and bars on standard error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""

LabeledProgressCallback = Callable[[str, int, int], None]
"""Called with (label, done, total); the label names the current stage."""

_LabeledBar = Callable[[str, int, int | None], None]
"""Like `LabeledProgressCallback`; a total of None stands for an unknown one."""


def alignment_progress(shown: bool) -> AbstractContextManager[ProgressCallback | None]:
    """A bar that appears once a vocabulary map has to be computed (cached maps take no time)."""
    return _task_progress("Aligning vocabularies", shown)


def skill_progress(shown: bool) -> AbstractContextManager[ProgressCallback | None]:
    """A bar over the worked chats on which members are compared (once for a pack)."""
    return _task_progress("Comparing the members on worked chats", shown)


def compile_progress(shown: bool) -> AbstractContextManager[ProgressCallback | None]:
    """A bar that appears once a step has to be compiled."""
    return _task_progress("Compiling steps", shown)


def question_progress(name: str) -> AbstractContextManager[ProgressCallback | None]:
    """A bar over the questions of the file `name`, times the systems that are compared."""
    return _task_progress(name)


def batch_progress(name: str) -> AbstractContextManager[ProgressCallback | None]:
    """A bar over the requests of the file `name`."""
    return _task_progress(name)


@contextmanager
def stage_progress(
    shown: bool = True, console: Console | None = None
) -> Iterator[LabeledProgressCallback | None]:
    """One bar for all stages; it appears with the first call and is removed at the end.

    Args:
        shown: False for no bar.
        console: The console of the bar, by default standard error.

    Yields:
        The callback that moves the bar, or None without a bar: the console is no terminal.
    """
    console = console or Console(stderr=True)
    if not shown or not console.is_terminal:
        yield None
        return
    columns = (_label_column(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _report_to(bar)


class StageReporter:
    """Reports the stages of a long preparation: bars on a terminal, else one line per stage.

    Args:
        shown: False for no output at all.
        console: The console to write to; by default standard error as it is now, so that a
            redirection during a stage does not move the bars.
    """

    def __init__(self, shown: bool = True, console: Console | None = None) -> None:
        """Bind the console."""
        self._shown = shown
        self._console = console or Console(file=sys.stderr)

    def message(self, text: str) -> None:
        """Print one paragraph of plain text."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, label: str, total: int | None = None) -> Iterator[ProgressCallback]:
        """Show a stage while the block runs; its bar stays on the screen afterwards.

        Args:
            label: Name of the stage.
            total: Size of the stage in bytes; None shows a spinner without a bar.

        Yields:
            The callback that moves the bar.
        """
        if self._shown and not self._console.is_terminal:
            self.message(f"{label} ...")
        bar = Progress(
            *_stage_columns(total),
            console=self._console,
            disable=not (self._shown and self._console.is_terminal),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with bar:
            report = _report_to(bar)
            report(label, 0, total)
            yield lambda done, size: report(label, min(done, size), size)
            # A stage that was skipped or was shorter than expected still ends complete.
            report(label, total or 1, total or 1)


@contextmanager
def library_bars(*, shown: bool) -> Iterator[None]:
    """A block in which transformers and the hub draw their own bars only if `shown`."""
    if shown:
        yield
        return
    # Imported here, as they load slowly.
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    gguf: Any = modeling_gguf_pytorch_utils
    bar, enabled = gguf.tqdm, logging.is_progress_bar_enabled()
    hub_disabled = are_progress_bars_disabled()
    # This turns off the hub's bars as well; no setting turns off the bar of GGUF files.
    gguf.tqdm = partial(bar, disable=True)
    with warnings.catch_warnings():
        # The hub warns if an environment variable decides about its bars.
        warnings.filterwarnings("ignore", "Cannot (dis|en)able progress bars")
        logging.disable_progress_bar()
    try:
        yield
    finally:
        gguf.tqdm = bar
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Cannot (dis|en)able progress bars")
            if enabled:
                logging.enable_progress_bar()
            if hub_disabled:
                disable_progress_bars()


@contextmanager
def _task_progress(label: str, shown: bool = True) -> Iterator[ProgressCallback | None]:
    """A bar with a fixed label."""
    with stage_progress(shown) as report:
        yield report and (lambda done, total: report(label, done, total))


def _report_to(bar: Progress) -> _LabeledBar:
    """A callback that moves the only task of `bar`; the first call adds the task."""
    task = None

    def report(label: str, done: int, total: int | None) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task(label, total=total)
        bar.update(task, description=label, completed=done, total=total)

    return report


def _label_column() -> TextColumn:
    return TextColumn("{task.description}", markup=False)


def _stage_columns(total: int | None) -> list[ProgressColumn]:
    columns: list[ProgressColumn] = [SpinnerColumn(), _label_column()]
    if total is not None:
        columns += [BarColumn(bar_width=30), DownloadColumn()]
    return [*columns, TimeElapsedColumn()]
