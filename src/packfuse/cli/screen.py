"""Where output goes: answers and documents to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import typer
from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.text import Text

from packfuse.errors import PackError
from packfuse.generation.result import Chunk, FusionRecord

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters other than tabs and line ends."""


class Screen:
    """One command's output.

    Attributes:
        as_json: Whether stdout carries JSON and nothing else.
        out: Standard output.
        err: Standard error.
    """

    def __init__(self, as_json: bool = False) -> None:
        """Bind the streams as they are now."""
        self.as_json = as_json
        self.out = Console(highlight=False, soft_wrap=False)
        self.err = Console(stderr=True, highlight=False)

    def show(self, *parts: RenderableType) -> None:
        """The result of a command, for people."""
        if not self.as_json:
            self.out.print(*parts, sep="\n")

    def note(self, *parts: RenderableType) -> None:
        """What accompanies a result."""
        self.err.print(*parts, sep="\n")

    def wait(self, text: str) -> None:
        """Say what takes a while, where somebody watches."""
        if self.err.is_terminal:
            self.err.print(Text(text, style="dim"))

    def document(self, value: Any, *, indent: int | None = 2) -> None:
        """The result of a command as JSON; numbers that JSON does not know become null."""
        if self.as_json:
            typer.echo(to_json(value, indent=indent, inf_nan_mode="null"))

    def answer(self, chunks: Iterator[Chunk]) -> tuple[str, FusionRecord]:
        """Print an answer as it comes, and return it; generation stops when this is left."""
        text, record = "", None
        with contextlib.closing(chunks):  # type: ignore[type-var]
            for chunk in chunks:
                text += chunk.text
                record = chunk.record or record
                if not self.as_json:
                    typer.echo(self._shown(chunk.text), nl=False)
        if not self.as_json and not text.endswith("\n"):
            typer.echo()
        if record is None:
            raise PackError("the stream ended without a record")
        return text, record

    def _shown(self, text: str) -> str:
        """Text as it is, but for a terminal without what would move its cursor or color it."""
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if self.out.is_terminal else text

    def fail(self, error: PackError) -> None:
        """Say what went wrong and what to do next."""
        message = Text("error: ", style="bold red").append(error.message, style="not bold red")
        self.err.print(message, soft_wrap=True)
        if error.hint:
            self.err.print(Text(f"  {error.hint}"), soft_wrap=True)
        found = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        self.document({"error": found})
