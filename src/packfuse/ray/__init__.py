"""Packs on a cluster of Ray: an endpoint with replicas, and batches over many workers.

`packfuse.cli` uses `connect`, `deploy` and `answered_on`; `application` is for Ray Serve's own
commands. Ray places processes; members on other nodes are read by the member protocol, not by
calls of actors, whose results go through object stores. This room may use `batch`, `server` and the
rooms below them. It needs `packfuse[ray]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from packfuse.extras import needs_extra

if TYPE_CHECKING:
    from packfuse.ray.application import DeployOptions, application
    from packfuse.ray.cluster import connect
    from packfuse.ray.deploying import deploy
    from packfuse.ray.pipeline import answered_on

__all__ = ["DeployOptions", "answered_on", "application", "connect", "deploy"]

_HOMES = {
    "DeployOptions": "application",
    "answered_on": "pipeline",
    "application": "application",
    "connect": "cluster",
    "deploy": "deploying",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Raises:
        ConfigError: if Ray is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needs_extra("ray"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
