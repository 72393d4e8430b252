"""`packfuse chat`: a conversation with the pack."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from packfuse.cli.options import PackOptions, TextOptions
from packfuse.cli.prompts import piped
from packfuse.cli.screen import Screen
from packfuse.cli.tables import record_view, weighing_view
from packfuse.errors import PackError

if TYPE_CHECKING:
    from packfuse.generation.output.result import FusionRecord
    from packfuse.pack import Pack

_HELP = """/exit          leave (or end the input)
/clear         start a new conversation
/system TEXT   set the system message (none without TEXT) and start a new conversation
/record        show the fusion record of the last answer
/weights       show the members' weights on the conversation, by weighting
/help          this list"""


def chat(
    screen: Screen,
    pack: PackOptions,
    text: TextOptions,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
) -> None:
    """Chat with the pack; /help lists the commands.

    Reads one message per line. With --json every line of output is one object: an answer
    {"text": ..., "record": {...}}, or the result of /record or /weights.
    """
    conversation = Conversation(pack.load(screen), screen, text.arguments(), system or "")
    if not piped():
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


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the commands on them.

    Attributes:
        pack: The pack.
        screen: Where output goes.
        arguments: Arguments of `Pack.stream`.
        system: System message; empty for none.
        turns: Messages of user and assistant.
        record: The record of the last answer.
    """

    pack: Pack
    screen: Screen
    arguments: dict[str, Any]
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    record: FusionRecord | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The system message, if there is one, and all turns."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def send(self, text: str) -> None:
        """Send a message and print the answer; a message without an answer is removed."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer, self.record = self.screen.answer(
                self.pack.stream(self.messages, **self.arguments)
            )
        except PackError as error:
            self._remove_message(error)
        except KeyboardInterrupt:
            self._remove_message(None)
        else:
            self.turns.append({"role": "assistant", "content": answer})
            self.screen.document({"text": answer, "record": self.record}, indent=None)

    def _remove_message(self, error: PackError | None) -> None:
        """Remove the message without an answer; if input is piped, raise the error."""
        self.turns.pop()
        if piped():
            raise error or KeyboardInterrupt
        if error:
            self.screen.fail(error)
        else:
            self.screen.note("")

    def command(self, line: str) -> bool:
        """Run a command, a line that begins with a slash; False ends the conversation."""
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "clear": self._clear,
            "help": lambda _: self.screen.note(Text(_HELP)),
            "record": self._record,
            "system": self._system,
            "weights": self._weights,
        }
        if name in commands:
            commands[name](rest.strip())
        else:
            self.screen.note(Text(f"there is no /{name}\n{_HELP}", style="red"))
        return True

    def _clear(self, _: str) -> None:
        self.turns, self.record = [], None

    def _system(self, text: str) -> None:
        self._clear("")
        self.system = text

    def _record(self, _: str) -> None:
        if self.record is None:
            self.screen.note(Text("there is no answer yet", style="red"))
            return
        self.screen.document(self.record, indent=None)
        self.screen.show(*record_view(self.record))

    def _weights(self, _: str) -> None:
        if not self.turns:
            self.screen.note(Text("there is no message yet", style="red"))
            return
        found = self.pack.weigh(self.messages)
        self.screen.document(found, indent=None)
        self.screen.show(*weighing_view(found))
