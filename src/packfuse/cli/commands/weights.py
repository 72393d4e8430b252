"""`packfuse weights`: the members' weights on a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from packfuse.cli.options import PackOptions
from packfuse.cli.prompts import read_prompt
from packfuse.cli.screen import Screen
from packfuse.cli.tables import weighing_view
from packfuse.registry import parse_spec


def weights(
    screen: Screen,
    pack: PackOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Prompt; '-' reads standard input. Piped input is appended."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat/--raw", help="Apply the chat templates, or not (default)."),
    ] = False,
) -> None:
    """Show the members' weights on a prompt, with all weightings or the one of --weighting."""
    text = read_prompt(prompt)
    pack.settings()
    weightings: list[Any] | None = [parse_spec(pack.weighting)] if pack.weighting else None
    loaded = replace(pack, weighting=None).load(screen)
    if pack.weight:
        weightings = [loaded.runtime.parts.weighting]
    found = loaded.weigh([{"role": "user", "content": text}] if chat else text, weightings)
    screen.show(*weighing_view(found))
    screen.document(found)
