"""`packfuse run`: answers one prompt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from packfuse.cli.options import PackOptions, TextOptions
from packfuse.cli.prompts import read_prompt
from packfuse.cli.screen import Screen
from packfuse.cli.tables import record_view, trace_view
from packfuse.errors import ConfigError


def run(
    screen: Screen,
    pack: PackOptions,
    text: TextOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Prompt; '-' reads standard input. Piped input is appended."),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Apply the chat templates, or continue plain text (default)."
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message; implies --chat.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show the probabilities of each token.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Show the members' weights, on stderr.")
    ] = True,
) -> None:
    """Answer a prompt.

    The text is streamed to standard output. With --json, one object is printed at the end:
    {"text": ..., "record": {...}}.
    """
    question = _question(read_prompt(prompt), chat, system)
    chunks = pack.load(screen).stream(question, trace=trace, **text.arguments())
    answer, found = screen.answer(chunks)
    screen.document({"text": answer, "record": found})
    if screen.as_json:
        return
    if trace:
        screen.note("", trace_view(found))
    if record:
        screen.note("", *record_view(found))


def _question(prompt: str, chat: bool | None, system: str | None) -> str | list[dict[str, Any]]:
    if system is not None and chat is False:
        raise ConfigError(
            "--system and --raw exclude each other", hint="plain text has no system message"
        )
    if not chat and system is None:
        return prompt
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]
