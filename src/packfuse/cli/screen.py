"""Output of commands: results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from pydantic_core import to_json
from rich.console import Console, RenderableType
from rich.text import Text

from packfuse.errors import PackError

if TYPE_CHECKING:
    from packfuse.generation.output.result import Chunk, FusionRecord

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters other than tabs and line ends."""


class Screen:
    """The output of one command.

    Attributes:
        as_json: Whether stdout is JSON only.
        out: Standard output.
        err: Standard error.
    """

    def __init__(self, as_json: bool = False) -> None:
        """Use the standard streams as they are now."""
        self.as_json = as_json
        # Names may have brackets and colons, which are neither styles nor emojis.
        plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
        self.out = Console(soft_wrap=False, **plain)
        self.err = Console(stderr=True, **plain)

    def show(self, *parts: RenderableType) -> None:
        """Print the result of a command, unless it is printed as JSON."""
        if not self.as_json:
            self.out.print(*parts, sep="\n")

    def note(self, *parts: RenderableType) -> None:
        """Print notes about a result to stderr."""
        self.err.print(*parts, sep="\n")

    def wait(self, text: str) -> None:
        """Print what takes a while, on a terminal only."""
        if self.err.is_terminal:
            self.err.print(Text(text, style="dim"))

    def document(self, value: Any, *, indent: int | None = 2) -> None:
        """Print the result of a command as JSON, if requested; NaN and infinity become null."""
        if self.as_json:
            typer.echo(to_json(value, indent=indent, inf_nan_mode="null"))

    def answer(self, chunks: Iterator[Chunk]) -> tuple[str, FusionRecord]:
        """Print an answer as it is streamed, and return it; an exception stops generation."""
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
        """The text; on a terminal without control characters, which could move the cursor."""
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if self.out.is_terminal else text

    def fail(self, error: PackError) -> None:
        """Print an error and its hint."""
        message = Text("error: ", style="bold red").append(error.message, style="not bold red")
        self.err.print(message, soft_wrap=True)
        if error.hint:
            self.err.print(Text(f"  {error.hint}"), soft_wrap=True)
        found = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        self.document({"error": found})
