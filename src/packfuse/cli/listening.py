"""Options of the commands that listen on a port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from packfuse.cli.screen import Screen

SERVER: dict[str, Any] = {"rich_help_panel": "The server"}


@dataclass(frozen=True)
class ListenOptions:
    """Where a server listens, who may use it, and what a request may be."""

    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all networks.", **SERVER)
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.", **SERVER)] = 8000
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PACKFUSE_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="Key that requests must have. Others can read it in a command; the environment "
            "variable is safer.",
            **SERVER,
        ),
    ] = None
    max_body: Annotated[int, typer.Option(min=1, help="Largest request, in bytes.", **SERVER)] = (
        4 * 2**20
    )
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest time to send a request, seconds.", **SERVER)
    ] = 30.0
    grace: Annotated[
        int,
        typer.Option(min=0, help="Time for running answers when the server ends, s.", **SERVER),
    ] = 30

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that every server has, by the names of `RequestLimits`."""
        return {"api_key": self.api_key, "max_body": self.max_body, "timeout": self.timeout}

    def warn(self, screen: Screen) -> None:
        """Say so where everybody in a network may use the server."""
        local = self.host in ("127.0.0.1", "localhost", "::1")
        if not local and self.api_key is None:
            screen.note(f"warning: everybody who reaches {self.host} can use it; set --api-key")
