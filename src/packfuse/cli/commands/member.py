"""`packfuse member`: serves one member to packs on other machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packfuse.cli.listening import SERVER, ListenOptions
from packfuse.cli.options import quiet, size
from packfuse.cli.screen import Screen
from packfuse.extras import needs_extra
from packfuse.settings import MemberSettings, PackConfig

if TYPE_CHECKING:
    from packfuse.models.member import Member


@dataclass(frozen=True)
class MemberOptions(ListenOptions):
    """Where the server listens, and its limits."""

    max_cache: Annotated[
        str,
        typer.Option(
            metavar="BYTES", help="Most bytes of its KV caches; auto: half of what is free.",
            **SERVER,
        ),
    ] = "auto"  # fmt: skip
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            help="Time after which a client that sends nothing loses its KV caches, seconds.",
            **SERVER,
        ),
    ] = 600.0
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with on processors.", **SERVER)
    ] = None


def member(
    screen: Screen,
    model: Annotated[str, typer.Argument(help="Hub id, folder or GGUF file.")],
    server: MemberOptions,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="TOKENIZER", help="Its tokenizer, where it is not the model's own."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="Type of the weights: float32, ...")
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Where the weights go: auto, cpu, cuda, ..."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Serve one model as a member of packs on other machines.

    There it is {url: http://HOST:PORT}, in Python and in a pack.yaml. Needs the extra `serve`.
    """
    with needs_extra("serve"):
        from packfuse.server.member import MemberLimits, create_member_app
        from packfuse.server.serving import bound, run
    given = {"tokenizer": tokenizer, "dtype": dtype, "device_map": device_map}
    entry = MemberSettings.check({"model": model, **given})
    config = PackConfig.check({"members": [entry], "trust_remote_code": trust_remote_code})
    limit = size(server.max_cache)
    listening = bound(server.host, server.port)  # before minutes of loading
    try:
        quiet(screen)
        server.warn(screen)
        found = _loaded(screen, config, server.threads)
        limits = MemberLimits(
            **server.limits,
            lease=server.lease,
            max_cache=_limit(limit, found),
        )
        run(create_member_app(found, limits), listening, server.grace, screen.note)
    finally:
        listening.close()


def _loaded(screen: Screen, config: PackConfig, threads: int | None) -> Member:
    screen.wait("Loading the model ...")
    import torch

    from packfuse.models.loading import load_members

    if threads is not None:
        torch.set_num_threads(threads)
    return load_members(config)[0]


def _limit(setting: Any, found: Member) -> int:
    from packfuse.scheduler.admission import memory_limit

    return memory_limit(setting, [found])
