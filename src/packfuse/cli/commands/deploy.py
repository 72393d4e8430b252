"""`packfuse deploy`: runs the endpoint of `packfuse serve` on a cluster of Ray."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from packfuse.cli.listening import ListenOptions
from packfuse.cli.options import quiet
from packfuse.cli.screen import Screen
from packfuse.errors import ConfigError
from packfuse.extras import needs_extra
from packfuse.settings import PackConfig, RayPlace

_CLUSTER: dict[str, Any] = {"rich_help_panel": "The cluster"}


@dataclass(frozen=True)
class ClusterOptions:
    """The cluster, and how many replicas there are."""

    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The cluster; this machine's if omitted, or else one that ends with the command.",
            **_CLUSTER,
        ),
    ] = None
    min_replicas: Annotated[int, typer.Option(min=1, help="Fewest replicas.", **_CLUSTER)] = 1
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Most replicas; the fewest if omitted.", **_CLUSTER)
    ] = None
    running: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests of a replica above which one is added; max_rows if omitted.",
            **_CLUSTER,
        ),
    ] = None
    num_cpus: Annotated[float, typer.Option(min=0, help="Processors of a replica.", **_CLUSTER)] = (
        1.0
    )
    num_gpus: Annotated[
        float, typer.Option(min=0, help="GPUs of a replica, for members without `ray`.", **_CLUSTER)
    ] = 0.0
    load_seconds: Annotated[
        float,
        typer.Option(min=1, help="Longest time until the packs are placed and loaded.", **_CLUSTER),
    ] = 600.0


def deploy(
    screen: Screen,
    server: ListenOptions,
    cluster: ClusterOptions,
    file: Annotated[Path, typer.Argument(metavar="PACK.yaml", help="One pack, or several.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the application, and of a single pack.")
    ] = "packfuse",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer in a chat, if it does not say.")
    ] = 1024,
) -> None:
    """Run the endpoint of `packfuse serve` on a cluster of Ray.

    Replicas come and go with the requests. Members with `ray` in the file are loaded by the nodes
    that have what it names. On a cluster that was there before, the application stays until
    `serve shutdown`. Needs the extra `ray`.
    """
    most = cluster.max_replicas or cluster.min_replicas
    if most < cluster.min_replicas:
        raise ConfigError(
            f"--max-replicas {most} is less than --min-replicas {cluster.min_replicas}",
            hint="give at least as many",
        )
    configs = PackConfig.read_named(file, name)
    with needs_extra("ray"):
        from packfuse.server.app import Limits
    from packfuse.ray import DeployOptions, connect
    from packfuse.ray import deploy as start

    quiet(screen)
    server.warn(screen)
    own = connect(cluster.ray_address)
    options = DeployOptions(
        min_replicas=cluster.min_replicas,
        max_replicas=most,
        running=cluster.running,
        place=RayPlace(num_cpus=cluster.num_cpus, num_gpus=cluster.num_gpus),
        load_seconds=cluster.load_seconds,
        grace=server.grace,
        limits=Limits(
            **server.limits,
            max_tokens=max_tokens,
        ),
    )
    screen.wait("Placing and loading the packs ...")
    start(configs, options, name=name, host=server.host, port=server.port)
    screen.note(f"http://{server.host}:{server.port}")
    if own:
        threading.Event().wait()
