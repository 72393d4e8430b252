"""The endpoint of `packfuse serve` as an application of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from packfuse.ray.forwarding import forwarding, responses
from packfuse.ray.placed import PlacedPacks
from packfuse.server.app import Limits, create_app
from packfuse.server.limits import Message
from packfuse.server.packs import Served
from packfuse.settings import PackConfig, RayPlace

_ROUTER = "packfuse.ray.routing.PrefixRouter"
_PACKS = "packs"


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """How many replicas there are, and what each takes.

    Attributes:
        min_replicas: Fewest replicas.
        max_replicas: Most replicas.
        running: Requests that a replica has on average; with more, replicas are added. By default
            the most answers that a pack decodes at the same time.
        place: What the process of a replica takes, besides members that have places of their own.
        load_seconds: Longest time until a member is placed and loaded.
        grace: Time for running answers when a replica ends, in seconds.
        limits: The limits of the endpoint.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    running: int | None = None
    place: RayPlace = field(default_factory=RayPlace)
    load_seconds: float = 600.0
    grace: float = 30.0
    limits: Limits = field(default_factory=Limits)


class PackReplica:
    """A replica: packs, whose members may be on other nodes, and the application over them."""

    async def __init__(  # type: ignore[misc]
        self, configs: Mapping[str, PackConfig], limits: Limits, load_seconds: float
    ) -> None:
        """Load the packs.

        Args:
            configs: The packs by name.
            limits: The limits of the endpoint.
            load_seconds: Longest time until a member is placed and loaded.

        Raises:
            PackError: if a pack cannot be loaded.
        """
        self._placed = await asyncio.to_thread(PlacedPacks, configs, load_seconds)
        # The key was checked before the request was sent here.
        self._app = create_app(Served.ready(**self._placed.packs), replace(limits, api_key=None))
        self._life = AsyncExitStack()
        await self._life.enter_async_context(self._app.router.lifespan_context(self._app))

    async def respond(
        self, key: str, scope: Mapping[str, Any], body: bytes
    ) -> AsyncGenerator[Message]:
        """The messages of the answer to a request.

        Args:
            key: What it was routed by.
            scope: The request.
            body: Its body.
        """
        del key
        async for message in responses(self._app, scope, body):
            yield message

    def nodes(self) -> dict[str, str]:
        """The nodes of members that have a place, by `pack/member`."""
        return {"/".join(names): node for names, node in self._placed.nodes.items()}

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that fails.

        Raises:
            MemberError: if the process of a member is gone.
        """
        await asyncio.to_thread(self._placed.check)

    async def __del__(self) -> None:
        """End the packs and the members."""
        if hasattr(self, "_life"):
            await self._life.aclose()
            self._placed.close()


def application(
    configs: Mapping[str, PackConfig], options: DeployOptions | None = None
) -> serve.Application:
    """An application for `serve.run`: OpenAI's API, the same as `packfuse serve`.

    Each replica has packs of its own, with all of their members. Requests whose prompts begin alike
    go to the same replica while it has no more than its share.

    Args:
        configs: The packs by name.
        options: Numbers and limits.
    """
    options = options or DeployOptions()
    limits = options.limits
    rows = max(config.max_rows for config in configs.values())
    packs = serve.deployment(
        PackReplica,
        name=_PACKS,
        ray_actor_options={
            "num_cpus": options.place.num_cpus,
            "num_gpus": options.place.num_gpus,
            "resources": options.place.resources,
        },
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            target_ongoing_requests=options.running or rows,
        ),
        max_ongoing_requests=4 * rows,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=options.grace,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
    ).bind(dict(configs), limits, options.load_seconds)

    def build() -> Any:
        context = serve.get_replica_context()
        return forwarding(serve.get_deployment_handle(_PACKS, context.app_name), limits)

    ingress = serve.deployment(
        serve.ingress(build)(),
        name="endpoint",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
    )
    return ingress.bind(packs)
