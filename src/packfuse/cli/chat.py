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
    from packfuse.generation.result import FusionRecord
    from packfuse.pack import Pack

_HELP = """/exit          leave (or end the input)
/clear         start a new conversation
/system TEXT   set the system message and start anew; without TEXT remove it
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

    Reads one message a line. With --json every line of output is one object: an answer
    {"text": ..., "record": {...}}, or the result of /record or /weights.
    """
    talk = Conversation(pack.load(screen), screen, text.arguments(), system or "")
    if not piped():
        screen.note(Text("/help lists the commands, /exit leaves.", style="dim"))
    for line in _lines("" if piped() or screen.as_json else "> "):
        if line.startswith("/"):
            if not talk.command(line):
                break
        elif line:
            talk.say(line)


def _lines(mark: str) -> Iterator[str]:
    """Messages, one a line, until the input ends."""
    if not piped():
        # Line editing and history where the platform has them.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            yield input(mark).strip()
        except EOFError:
            return


@dataclass(slots=True)
class Conversation:
    """Messages so far, and what can be done with them."""

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

    def say(self, text: str) -> None:
        """Say something and print the answer; what cannot be answered is forgotten."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer, self.record = self.screen.answer(
                self.pack.stream(self.messages, **self.arguments)
            )
        except PackError as error:
            self._give_up(error)
        except KeyboardInterrupt:
            self._give_up(None)
        else:
            self.turns.append({"role": "assistant", "content": answer})
            self.screen.document({"text": answer, "record": self.record}, indent=None)

    def _give_up(self, error: PackError | None) -> None:
        """Forget the message that got no answer; without a person to try again, stop."""
        self.turns.pop()
        if piped():
            raise error or KeyboardInterrupt
        if error:
            self.screen.fail(error)
        else:
            self.screen.note("")

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False ends the conversation."""
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        known: dict[str, Callable[[str], None]] = {
            "clear": self._clear,
            "help": lambda _: self.screen.note(Text(_HELP)),
            "record": self._record,
            "system": self._system,
            "weights": self._weights,
        }
        if name in known:
            known[name](rest.strip())
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
            self.screen.note(Text("nothing has been answered yet", style="red"))
            return
        self.screen.document(self.record, indent=None)
        self.screen.show(*record_view(self.record))

    def _weights(self, _: str) -> None:
        if not self.turns:
            self.screen.note(Text("nothing has been said yet", style="red"))
            return
        found = self.pack.weigh(self.messages)
        self.screen.document(found, indent=None)
        self.screen.show(*weighing_view(found))
