"""`packfuse chat`: a conversation with the pack."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from packfuse.cli.conversation import Conversation
from packfuse.cli.options import PackOptions, TextOptions
from packfuse.cli.prompts import piped
from packfuse.cli.screen import Screen
from packfuse.cli.tables import members_view


def chat(
    screen: Screen,
    pack: PackOptions,
    text: TextOptions,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
) -> None:
    """Chat with the pack; /help lists the commands.

    Reads one message per line. With --json every line of output is one object: an answer
    {"text": ..., "record": {...}}, or the result of a command.
    """
    conversation = Conversation(pack.load(screen), screen, text.arguments(), system or "")
    if not piped():
        screen.note(members_view(conversation.pack.members))
        screen.note(Text("/help lists the commands, /exit leaves.", style="dim"))
    for line in _lines("" if piped() or screen.as_json else "> "):
        if line.startswith("/"):
            if not conversation.command(line):
                break
        elif line:
            conversation.send(line)


def _lines(prompt: str) -> Iterator[str]:
    """Messages, one per line, until the input ends."""
    if not piped():
        # Line editing and history, on platforms that have readline.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return
