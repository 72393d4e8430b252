"""The command line `packfuse`: one module per command, and the options and output they share.

`main` is the entry point, and `app` the Typer application; no other room imports from here. This
room may use all other rooms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from packfuse import __version__
from packfuse.cli.command import Command, command
from packfuse.cli.commands.batch import batch
from packfuse.cli.commands.cache import cache
from packfuse.cli.commands.chat import chat
from packfuse.cli.commands.check import check
from packfuse.cli.commands.deploy import deploy
from packfuse.cli.commands.determine import determine
from packfuse.cli.commands.doctor import doctor
from packfuse.cli.commands.evaluate import evaluate
from packfuse.cli.commands.member import member
from packfuse.cli.commands.plan import plan
from packfuse.cli.commands.run import run
from packfuse.cli.commands.serve import serve
from packfuse.cli.commands.starter import starter
from packfuse.cli.commands.weights import weights

app = typer.Typer(
    name="packfuse",
    help="Fuse local language models with different tokenizers into one.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Generate": {"run": run, "chat": chat, "batch": batch, "weights": weights},
    "Serve": {"serve": serve, "member": member, "deploy": deploy, "plan": plan},
    "Choose members": {"check": check, "eval": evaluate, "determine": determine},
    "This machine": {"starter": starter, "cache": cache, "doctor": doctor},
}
for panel, group in _COMMANDS.items():
    for name, function in group.items():
        app.command(name, cls=Command, rich_help_panel=panel)(command(function))


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
