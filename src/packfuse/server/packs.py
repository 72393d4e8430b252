"""The packs that a server answers with, by name, and whether they are ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import xxhash

from packfuse.pack import Pack
from packfuse.server.problems import RequestError
from packfuse.text.chats.tool_text import to_json

State = Literal["loading", "ready", "failed"]


@dataclass
class Served:
    """Packs by name, which are loaded while the server answers already that it is loading.

    Attributes:
        load: Loads the packs.
        packs: The packs that are ready.
        state: Whether they are.
        error: Why they could not be loaded.
    """

    load: Callable[[], Mapping[str, Pack]]
    packs: dict[str, Pack] = field(default_factory=dict)
    state: State = "loading"
    error: str = ""

    @classmethod
    def ready(cls, **packs: Pack) -> Served:
        """Packs that are loaded already, by name."""
        return cls(dict, dict(packs), "ready")

    def start(self, done: Callable[[], object] = int) -> None:
        """Load in a thread, and call `done` at the end."""
        if self.state == "loading":
            threading.Thread(target=self._run, args=(done,), daemon=True).start()

    def _run(self, done: Callable[[], object]) -> None:
        try:
            self.packs.update(self.load())
            self.state = "ready"
        except BaseException as error:
            self.error, self.state = str(error) or type(error).__name__, "failed"
        done()

    def pack(self, name: object) -> tuple[str, Pack]:
        """The pack of a name, with its name; the first one for no name.

        Raises:
            RequestError: if there is none of that name, or none is ready.
        """
        if self.state != "ready":
            why = (
                "is loading its models" if self.state == "loading" else "could not load its models"
            )
            raise RequestError(503, f"the server {why}", code=self.state)
        if name is None:
            return next(iter(self.packs.items()))
        if not isinstance(name, str) or name not in self.packs:
            known = ", ".join(self.packs)
            raise RequestError(404, f"there is no model {name!r}; known: {known}", "model",
                          "model_not_found")  # fmt: skip
        return name, self.packs[name]

    def close(self) -> None:
        """Close all packs."""
        for pack in self.packs.values():
            pack.close()


def fingerprint(pack: Pack) -> str:
    """A short name of how a pack fuses which members, equal wherever they are loaded."""
    members = [(m.name, m.quick_digest(), m.vocabulary.columns) for m in pack.members]
    text = to_json([pack.runtime.named_settings.changes_answers, members])
    return f"pf_{xxhash.xxh64_hexdigest(text.encode())[:12]}"
