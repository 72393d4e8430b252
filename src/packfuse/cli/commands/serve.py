"""`packfuse serve`: answers OpenAI's API over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from packfuse.cli.listening import SERVER, ListenOptions
from packfuse.cli.options import PackOptions, SchedulingOptions, quiet
from packfuse.cli.screen import Screen
from packfuse.errors import PackError
from packfuse.extras import needs_extra

if TYPE_CHECKING:
    from packfuse.pack import Pack


@dataclass(frozen=True)
class ServerOptions(ListenOptions):
    """Where the server listens, and its limits."""

    name: Annotated[
        str,
        typer.Option(metavar="NAME", help="Name of the pack, as `model` in requests.", **SERVER),
    ] = "packfuse"
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most tokens of an answer in a chat, if the request does not say.",
            **SERVER,
        ),
    ] = 1024
    max_waiting: Annotated[
        int | None,
        typer.Option(min=1, help="Most prompts that may wait; others get status 429.", **SERVER),
    ] = None
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Web page of another server that may use this one. Repeat it.",
            **SERVER,
        ),
    ] = None  # fmt: skip
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write requests to the access log.", **SERVER)
    ] = False


def serve(
    screen: Screen, pack: PackOptions, server: ServerOptions, scheduling: SchedulingOptions
) -> None:
    """Answer OpenAI's API over HTTP, many requests at once, with a page to chat.

    Needs the extra `serve`. Without --pack and --model, the starter pack answers. A
    file given to --pack may hold several packs, by name under `packs:`.
    """
    with needs_extra("serve"):
        from packfuse.server.app import Limits, create_app
        from packfuse.server.packs import Served
        from packfuse.server.serving import bound, run
    waiting = {} if server.max_waiting is None else {"max_waiting": server.max_waiting}
    load = pack.loader(screen, server.name, **scheduling.settings(), **waiting)

    def loaded() -> Mapping[str, Pack]:
        try:
            return load()
        except PackError as error:
            screen.fail(error)
            raise

    quiet(screen)
    server.warn(screen)
    limits = Limits(
        **server.limits,
        max_tokens=server.max_tokens,
        allow_origins=server.allow_origin or (),
        log_prompts=server.log_prompts,
    )
    app = create_app(Served(loaded), limits)
    run(app, bound(server.host, server.port), server.grace, screen.note)
