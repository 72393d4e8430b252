"""`packfuse run`: answers one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packfuse.cli.options import PackOptions, TextOptions
from packfuse.cli.prompts import read_prompt
from packfuse.cli.screen import Screen
from packfuse.cli.tables import record_view, trace_view, weights_view
from packfuse.errors import ConfigError

if TYPE_CHECKING:
    from packfuse.pack import Pack


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
            "--chat/--raw",
            help="Apply the chat templates (default if a member has one), or continue plain text.",
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message; implies --chat.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show the probabilities of each token.")
    ] = False,
    record: Annotated[
        bool | None,
        typer.Option(
            "--record/--no-record",
            help="Show the fusion record as a table, or nothing (default: one line), on stderr.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page that shows who carried each token."),
    ] = None,
) -> None:
    """Answer a prompt.

    The text is streamed to standard output, and a line with the members' weights follows on
    standard error. With --json, one object is printed at the end:
    {"text": ..., "record": {...}}.
    """
    given = read_prompt(prompt)
    if system is not None and chat is False:
        raise ConfigError(
            "--system and --raw exclude each other", hint="plain text has no system message"
        )
    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {str(html.parent)!r}", hint="make it before")
    loaded = pack.load(screen)
    question = _question(given, system) if _is_chat(loaded, chat, system) else given
    chunks = loaded.stream(question, trace=trace or html is not None, **text.arguments())
    answer, found = screen.answer(chunks)
    if html is not None:
        from packfuse.generation.output.result import Answer

        Answer(answer, found, ()).view().save(html)
    if not trace:
        found = found.model_copy(update={"trace": None, "prompt_trace": None})
    screen.document({"text": answer, "record": found})
    if screen.as_json:
        return
    if trace:
        screen.note("", trace_view(found))
    if record:
        screen.note("", *record_view(found))
    elif record is None:
        screen.note("", *weights_view(found))


def _is_chat(pack: Pack, chat: bool | None, system: str | None) -> bool:
    """Whether the prompt is a message of a chat: by default, if a member has a chat template."""
    if chat is not None or system is not None:
        return chat is not False
    return any(member.tokenizer.chat_template for member in pack.members)


def _question(prompt: str, system: str | None) -> list[dict[str, Any]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": prompt}]
