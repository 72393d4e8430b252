"""Packs whose members are on several nodes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from packfuse.errors import LoadError, MemberError
from packfuse.models.loading import member_names
from packfuse.pack import Pack
from packfuse.ray.cluster import shown
from packfuse.ray.member_actor import MemberActor
from packfuse.settings import PackConfig

_KEY = "PACKFUSE_RAY_KEY"
"""Environment variable of this process with the key of its members."""

_CHECK_SECONDS = 10.0
_REMOTE: Any = ray.remote(MemberActor)


class PlacedPacks:
    """Packs in this process, whose members with a place (`ray`) are in actors on other nodes.

    The actors end with this process, or with `close`.

    Attributes:
        packs: The packs by name.
        nodes: Ids of the nodes of the members that have a place, by pack and member.
    """

    def __init__(self, configs: Mapping[str, PackConfig], seconds: float = 600.0) -> None:
        """Load all members, at the same time where they are in actors.

        Args:
            configs: The packs by name.
            seconds: Longest time until a member is placed and loaded.

        Raises:
            LoadError: if a member cannot be placed, or cannot be loaded.
        """
        os.environ.setdefault(_KEY, secrets.token_hex(16))
        self._actors: dict[tuple[str, str], Any] = {}
        self.nodes: dict[tuple[str, str], str] = {}
        try:
            for name, config in configs.items():
                self._start(name, config)
            self.packs = Pack.several(
                {name: self._located(name, config, seconds) for name, config in configs.items()},
                progress=False,
            )
        except BaseException:
            self._end_actors()
            raise

    def _start(self, pack: str, config: PackConfig) -> None:
        for name, member in zip(member_names(config), config.members, strict=True):
            if member.ray is None:
                continue
            alone = config.replace(members=[member.replace(ray=None, name=name)])
            options = {
                "num_cpus": member.ray.num_cpus,
                "num_gpus": member.ray.num_gpus,
                "resources": member.ray.resources,
            }
            self._actors[pack, name] = _REMOTE.options(**options).remote(alone, os.environ[_KEY])

    def _located(self, pack: str, config: PackConfig, seconds: float) -> PackConfig:
        """The pack with addresses instead of places."""
        members = []
        for name, member in zip(member_names(config), config.members, strict=True):
            if member.ray is None:
                members.append(member)
                continue
            url, self.nodes[pack, name] = self._place(pack, name, member.ray.amounts, seconds)
            entry = {"url": url, "api": "packfuse", "name": name, "api_key_env": _KEY}
            members.append(type(member).check(entry))
        return config.replace(members=members)

    def _place(
        self, pack: str, name: str, amounts: Mapping[str, float], seconds: float
    ) -> tuple[str, str]:
        try:
            found: tuple[str, str] = ray.get(
                self._actors[pack, name].place.remote(), timeout=seconds
            )
        except GetTimeoutError as error:
            free = ray.available_resources()
            raise LoadError(
                f"member {name!r} was not placed and loaded within {seconds:g} s; it asks for "
                f"{shown(amounts)}, and {shown({n: free.get(n, 0) for n in amounts})} are free",
                hint="end what uses them, or start a node",
            ) from error
        except (RayActorError, RayTaskError) as error:
            cause = getattr(error, "cause", None) or error
            raise LoadError(f"member {name!r} cannot be loaded on its node: {cause}") from error
        return found

    def check(self) -> None:
        """Check that all actors still run.

        Raises:
            MemberError: naming a member whose actor does not.
        """
        for (_, name), actor in self._actors.items():
            try:
                ray.get(actor.pid.remote(), timeout=_CHECK_SECONDS)
            except (RayActorError, GetTimeoutError) as error:
                raise MemberError(f"the process of member {name!r} is gone") from error

    def close(self) -> None:
        """Close the packs, and end the actors."""
        for pack in self.packs.values():
            pack.close()
        self._end_actors()

    def _end_actors(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()

    def __enter__(self) -> Self:
        """The packs themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()
