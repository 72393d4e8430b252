"""A conversation with a pack in the terminal: its messages, and the commands on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from packfuse.cli.options import fixed_weights
from packfuse.cli.prompts import piped
from packfuse.cli.saved_chat import Message, SavedChat
from packfuse.cli.screen import Screen
from packfuse.cli.tables import record_view, trace_view, weighing_view, weights_view
from packfuse.errors import ConfigError, PackError
from packfuse.registry import parse_spec
from packfuse.weighting.methods import weightings

if TYPE_CHECKING:
    from packfuse.generation.output.result import FusionRecord
    from packfuse.pack import Pack

HELP = """/exit           leave (or end the input)
/clear          start a new conversation
/system TEXT    set the system message (none without TEXT) and start a new conversation
/record         show the fusion record of the last answer
/trace          show the probabilities of each token with every answer, or no longer
/weights        show the members' weights on the conversation, by weighting
/weights HOW    from now on: a weighting (/weights uniform), fixed weights (/weights A=0.7 B=0.3),
                or the pack's own again (/weights auto)
/save FILE      write the conversation and its records to a file
/load FILE      go on with a conversation of a file
/help           this list"""


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the commands on them.

    Attributes:
        pack: The pack.
        screen: Where output goes.
        arguments: Arguments of `Pack.stream`.
        system: System message; empty for none.
        turns: Messages of user and assistant.
        records: The records of the answers.
        trace: Whether the probabilities of each token are shown.
    """

    pack: Pack
    screen: Screen
    arguments: dict[str, Any]
    system: str = ""
    turns: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    trace: bool = False
    _last: FusionRecord | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The system message, if there is one, and all turns."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns]

    def send(self, text: str) -> None:
        """Send a message and print the answer; a message without an answer is removed."""
        self.turns.append({"role": "user", "content": text})
        try:
            answer, record = self.screen.answer(
                self.pack.stream(self.messages, trace=self.trace, **self.arguments)
            )
        except (PackError, KeyboardInterrupt) as error:
            self.turns.pop()
            self._show(error)
            return
        self.turns.append({"role": "assistant", "content": answer})
        self.records.append(record.model_dump(mode="json"))
        self._last = record
        self.screen.document({"text": answer, "record": record}, indent=None)
        if not self.screen.as_json:
            self.screen.note(*([trace_view(record)] if self.trace else []), *weights_view(record))

    def command(self, line: str) -> bool:
        """Run a command, a line that begins with a slash; False ends the conversation."""
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "clear": self._clear,
            "help": lambda _: self.screen.note(Text(HELP)),
            "load": self._load,
            "record": self._record,
            "save": self._save,
            "system": self._system,
            "trace": self._trace,
            "weights": self._weights,
        }
        if name not in commands:
            self.screen.note(Text(f"there is no /{name}\n{HELP}", style="red"))
            return True
        try:
            commands[name](rest.strip())
        except (PackError, KeyboardInterrupt) as error:
            self._show(error)
        return True

    def _show(self, error: PackError | KeyboardInterrupt) -> None:
        """Show what went wrong, and go on; if input is piped, raise it."""
        if piped():
            raise error
        if isinstance(error, PackError):
            self.screen.fail(error)
        else:
            self.screen.note("")

    def _clear(self, _: str) -> None:
        self.turns, self.records, self._last = [], [], None

    def _system(self, text: str) -> None:
        self._clear("")
        self.system = text

    def _trace(self, _: str) -> None:
        self.trace = not self.trace
        self.screen.note(Text(f"trace: {'on' if self.trace else 'off'}", "dim"))

    def _record(self, _: str) -> None:
        if self._last is None:
            self.screen.note(Text("there is no answer yet", style="red"))
            return
        self.screen.document(self._last, indent=None)
        self.screen.show(*record_view(self._last))

    def _weights(self, how: str) -> None:
        if how:
            self._set_weights(how)
        elif not self.turns:
            self.screen.note(Text("there is no message yet", style="red"))
        else:
            found = self.pack.weigh(self.messages)
            self.screen.document(found, indent=None)
            self.screen.show(*weighing_view(found))

    def _set_weights(self, how: str) -> None:
        """Set the weights of the following answers: a weighting, fixed ones, or the pack's own."""
        changed: dict[str, Any] = {}
        if ":" not in how and "=" in how:
            given = fixed_weights(how.replace(",", " ").split(), self.pack.names)
            weightings().make({"name": "fixed", "weights": given}).for_members(self.pack.names)
            changed["weights"] = given
        elif how != "auto":
            changed["weighting"] = parse_spec(how)
            weightings().make(changed["weighting"])
        kept = {name: own for name, own in self.arguments.items() if not name.startswith("weight")}
        self.arguments = kept | changed
        self.screen.note(Text(f"weights: {how}", "dim"))

    def _save(self, name: str) -> None:
        path = _path(name, "save")
        messages = [Message(**turn) for turn in self.turns]
        SavedChat(system=self.system, messages=messages, records=self.records).write(path)
        self._told({"saved": str(path), "messages": len(self.turns)})

    def _load(self, name: str) -> None:
        path = _path(name, "load")
        found = SavedChat.read(path)
        self._clear("")
        self.system = found.system
        self.turns = [message.model_dump() for message in found.messages]
        self.records = found.records
        self._told({"loaded": str(path), "messages": len(self.turns)})

    def _told(self, facts: dict[str, Any]) -> None:
        self.screen.document(facts, indent=None)
        self.screen.note(
            Text(", ".join(f"{name}: {value}" for name, value in facts.items()), "dim")
        )


def _path(name: str, command: str) -> Path:
    if not name:
        raise ConfigError(f"/{command} needs a file", hint=f"/{command} chat.json")
    return Path(name).expanduser()
