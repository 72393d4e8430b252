"""The nodes of a cluster, and whether what is asked for can ever be placed on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from packfuse.errors import ConfigError
from packfuse.settings import PackConfig

Amounts = Mapping[str, float]
"""Amounts of resources by Ray's names: CPU, GPU, and what nodes were started with."""


def connect(address: str | None) -> bool:
    """Connect to a cluster, unless this process is connected.

    Args:
        address: Address of the cluster. Without one it is that of this machine, or else one that
            is started here and ends with this process.

    Returns:
        Whether the cluster ends with this process.

    Raises:
        ConfigError: if nothing answers at the address.
    """
    if ray.is_initialized():
        return False
    quiet: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    try:
        ray.init(address or "auto", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is not None:
            raise ConfigError(
                f"no cluster of Ray answers at {address!r}: {error}",
                hint="`ray start --head` starts one and prints its address",
            ) from error
        ray.init("local", **quiet)
        return True
    return False


def wanted(configs: Mapping[str, PackConfig], replica: Amounts) -> list[tuple[str, Amounts]]:
    """What one replica takes: its own process, and each of its members with a place.

    Returns:
        Pairs of a name for errors and amounts.
    """
    members = [
        (f"member {member.name or member.model!r} of {pack!r}", member.ray.amounts)
        for pack, config in configs.items()
        for member in config.members
        if member.ray is not None
    ]
    return [("a replica", replica), *members]


def check_cluster(parts: Sequence[tuple[str, Amounts]], replicas: int) -> None:
    """Refuse what the nodes of the cluster do not have, now or when others have ended.

    Args:
        parts: What one replica takes; see `wanted`.
        replicas: Number of replicas that there are at least.

    Raises:
        ConfigError: naming the part, the resource, and what the nodes have.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for what, amounts in parts:
        if not any(_fits(amounts, node) for node in nodes):
            raise ConfigError(
                f"{what} asks for {shown(amounts)}, and no node of the cluster has it",
                hint="nodes have " + "; ".join(shown(_own(node)) for node in nodes),
            )
    needed = _summed([amounts for _, amounts in parts for _ in range(replicas)])
    there = _summed(nodes)
    short = [name for name, amount in needed.items() if amount > there[name]]
    if short:
        raise ConfigError(
            f"{replicas} replicas ask for {shown({n: needed[n] for n in short})}, and the cluster "
            f"has {shown({n: there[n] for n in short})}",
            hint="ask for fewer replicas, or start more nodes",
        )


def _summed(several: Sequence[Amounts]) -> Mapping[str, float]:
    found: defaultdict[str, float] = defaultdict(float)
    for amounts in several:
        for name, amount in amounts.items():
            found[name] += amount
    return found


def _fits(amounts: Amounts, node: Amounts) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in amounts.items())


def _own(node: Amounts) -> Amounts:
    """The resources of a node without those that Ray makes for itself."""
    made = ("memory", "object_store_memory")
    return {n: a for n, a in node.items() if n not in made and not n.startswith("node:")}


def shown(amounts: Amounts) -> str:
    """Amounts as text: `2 CPU, 0.5 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(amounts.items())) or "nothing"
