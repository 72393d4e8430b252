"""The command line `packfuse`: one module per command, and the options and output they share.

`main` is the entry point, and `app` the Typer application; no other room imports from here. This
room may use all other rooms.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from packfuse import __version__
from packfuse.cli.lazy import Commands


class _Packfuse(Commands):
    """The commands by panel of the help, with their modules."""

    panels: ClassVar = {
        "Generate": {"run": "run", "chat": "chat", "batch": "batch", "weights": "weights"},
        "Serve": {"serve": "serve", "member": "member", "deploy": "deploy", "plan": "plan"},
        "Choose members": {"check": "check", "eval": "evaluate", "determine": "determine"},
        "This machine": {"starter": "starter", "cache": "cache", "doctor": "doctor"},
    }


app = typer.Typer(
    name="packfuse",
    cls=_Packfuse,
    help="Fuse local language models with different tokenizers into one.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"packfuse {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that need no command."""


def main() -> None:
    """Run the command line."""
    app()
