"""`packfuse doctor`: versions and devices of this machine, and what will be fast here."""

from __future__ import annotations

import typer
from rich.text import Text

from packfuse.cli.screen import Screen
from packfuse.cli.tables import plain_table

_STYLES = {"ok": "green", "slow": "yellow", "missing": "dim", "problem": "bold red"}


def doctor(screen: Screen) -> None:
    """Show versions and devices, and what will be fast here and what not.

    Nothing is downloaded and no model is loaded. Exit status 1 if something has to be mended.
    """
    from packfuse.cli.diagnosis import findings

    found = findings()
    table = plain_table("", "found", "", "")
    for one in found:
        state = Text(one.state, _STYLES[one.state])
        table.add_row(one.topic, Text(one.found), state, Text(one.advice))
    screen.show(table)
    screen.document([one.model_dump() for one in found])
    if any(one.state == "problem" for one in found):
        raise typer.Exit(1)
