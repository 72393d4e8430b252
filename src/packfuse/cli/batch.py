"""`packfuse batch`: answers a file of requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from packfuse.cli.listening import needs_serve
from packfuse.cli.options import PackOptions, SchedulingOptions, quiet
from packfuse.cli.screen import Screen
from packfuse.progress import batch_progress

if TYPE_CHECKING:
    from packfuse.batch.run import Summary

_SHOWN = 10
"""Most errors of lines that are printed."""


def batch(
    screen: Screen,
    pack: PackOptions,
    scheduling: SchedulingOptions,
    source: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one a line.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="Answers, one a line.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the answers that OUT.jsonl has.")
    ] = False,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, if its line does not say.")
    ] = 1024,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the pack, as `model` in requests.")
    ] = "packfuse",
) -> None:
    """Answer a file of requests, many at once.

    A line is {"prompt": ...} or {"messages": ...} with the fields of `packfuse serve`, or a line of
    OpenAI's batches. Answers are written in order of completion, each with the custom_id of its
    line, or line-7 for line 7. Needs `pip install 'packfuse[serve]'`.

    Exit status 1 if a line has an error for an answer.
    """
    with needs_serve():
        from packfuse.batch.run import run_batch
        from packfuse.batch.worker import answered_by
    load = pack.loader(screen, name, **scheduling.settings())
    quiet(screen)
    with batch_progress(source.name) as step:
        try:
            summary = run_batch(
                source,
                target,
                lambda lines: answered_by(load(), lines),
                max_tokens=max_tokens,
                resume=resume,
                step=step,
            )
        except KeyboardInterrupt:
            screen.note(f"{target} has the answers so far; --resume goes on with it")
            raise
    screen.document(summary.model_dump(mode="json"))
    screen.show(*_view(summary, target))
    if summary.failed:
        raise typer.Exit(1)


def _view(summary: Summary, target: Path) -> list[Text]:
    """The summary for the terminal."""
    speed = summary.completion_tokens / summary.seconds if summary.seconds else 0.0
    before = f", {summary.resumed} of them before" if summary.resumed else ""
    lines = [
        Text(
            f"{summary.answered} of {summary.lines} lines answered{before}; "
            f"{summary.completion_tokens} tokens in {summary.seconds:.1f} s ({speed:.1f} tokens/s)"
        )
    ]
    if summary.repaired:
        lines.append(Text("half a line of an interrupted run was removed", "dim"))
    if summary.failed:
        lines.append(Text(f"{summary.failed} lines have an error for an answer:", "red"))
    lines += [Text(f"  line {one.line}: {one.message}") for one in summary.problems[:_SHOWN]]
    if len(summary.problems) > _SHOWN:
        lines.append(Text(f"  and {len(summary.problems) - _SHOWN} more, in {target}", "dim"))
    return lines
