"""`packfuse batch`: answers a file of requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from packfuse.cli.options import PackOptions, SchedulingOptions, quiet
from packfuse.cli.screen import Screen
from packfuse.errors import ConfigError
from packfuse.extras import needs_extra
from packfuse.progress import batch_progress

if TYPE_CHECKING:
    from packfuse.batch.run import Answers, Summary

_RAY: dict[str, Any] = {"rich_help_panel": "A cluster"}
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
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Answer with so many workers of a cluster of Ray.", **_RAY),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="The cluster; this machine's if omitted, or else one.", **_RAY
        ),
    ] = None,
) -> None:
    """Answer a file of requests, many at once.

    A line is {"prompt": ...} or {"messages": ...} with the fields of `packfuse serve`, or a line of
    OpenAI's batches. Answers are written in order of completion, each with the custom_id of its
    line, or line-7 for line 7. Needs the extra `serve`.

    Exit status 1 if a line has an error for an answer.
    """
    with needs_extra("serve" if workers is None else "ray"):
        from packfuse.batch.run import run_batch
    if ray_address is not None and workers is None:
        raise ConfigError("--ray-address has no effect without --workers", hint="give both")
    quiet(screen)
    answers = _answers(screen, pack, name, scheduling.settings(), workers, ray_address)
    with batch_progress(source.name) as step:
        try:
            summary = run_batch(
                source,
                target,
                answers,
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


def _answers(
    screen: Screen,
    pack: PackOptions,
    name: str,
    settings: Mapping[str, Any],
    workers: int | None,
    address: str | None,
) -> Answers:
    """Who answers: this process, or workers of a cluster. Nothing is loaded yet."""
    if workers is None:
        from packfuse.batch.worker import answered_by

        load = pack.loader(screen, name, **settings)
        return lambda lines: answered_by(load(), lines)
    configs = pack.configs(name, **settings)
    from packfuse.ray import answered_on, connect

    connect(address)
    return partial(answered_on, configs, workers=workers)


def _have(lines: int) -> str:
    return "1 line has" if lines == 1 else f"{lines} lines have"


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
        lines.append(Text(f"{_have(summary.failed)} an error for an answer:", "red"))
    lines += [Text(f"  line {one.line}: {one.message}") for one in summary.problems[:_SHOWN]]
    if len(summary.problems) > _SHOWN:
        lines.append(Text(f"  and {len(summary.problems) - _SHOWN} more, in {target}", "dim"))
    return lines
