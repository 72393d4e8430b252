"""Starts an application on a cluster, and waits until it answers or cannot."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from packfuse.errors import ConfigError, LoadError
from packfuse.ray.application import DeployOptions, application
from packfuse.ray.cluster import check_cluster, wanted
from packfuse.settings import PackConfig

_COLOR = re.compile(r"\x1b\[\d*m")
_OWN = "packfuse.errors."
_ENDED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
_POLL_SECONDS = 0.2


def deploy(
    configs: Mapping[str, PackConfig],
    options: DeployOptions | None = None,
    *,
    name: str = "packfuse",
    host: str = "127.0.0.1",
    port: int = 8000,
) -> None:
    """Run an application on the cluster that this process is connected to.

    Args:
        configs: The packs by name.
        options: Numbers and limits.
        name: Name of the application; one of the same name is replaced.
        host: Address on which every node listens. It counts for the first application of a cluster.
        port: Port, in the same way.

    Raises:
        ConfigError: if no node has what a replica or a member asks for, or another application has
            the address; nothing is started then.
        LoadError: if the packs cannot be loaded, or are not ready in time; nothing is left then.
    """
    options = options or DeployOptions()
    check_cluster(wanted(configs, options.place.amounts), options.min_replicas)
    serve.start(http_options={"host": host, "port": port})
    target = serve.RunTarget(application(configs, options), name=name)
    try:
        serve.run_many([target], wait_for_applications_running=False)
    except RayError as error:
        raise ConfigError(
            f"the application {name!r} cannot be started: {getattr(error, 'cause', None) or error}",
            hint="`serve status` lists those of the cluster; --name replaces one of them",
        ) from error
    try:
        _wait(name, options.load_seconds)
    except BaseException:
        serve.delete(name)
        raise


def _wait(name: str, seconds: float) -> None:
    """Wait until an application runs.

    Raises:
        LoadError: with the reason of a replica that failed, or if it takes too long.
    """
    until = time.monotonic() + seconds
    while True:
        found = serve.status().applications[name]
        if found.status == ApplicationStatus.RUNNING:
            return
        reasons = [f"{key}: {own.message}" for key, own in found.deployments.items() if own.message]
        reason = _short(" ".join([found.message, *reasons]).strip())
        if found.status in _ENDED:
            raise LoadError(f"the application {name!r} cannot run: {reason}")
        if time.monotonic() > until:
            raise LoadError(
                f"the application {name!r} is not ready after {seconds:g} s: {reason}",
                hint="`ray status` shows what is free; --load-seconds waits longer",
            )
        time.sleep(_POLL_SECONDS)


def _short(text: str) -> str:
    """The last error of packfuse in a trace, or all of it."""
    plain = _COLOR.sub("", text)
    _, found, own = plain.rpartition(_OWN)
    return own.partition(": ")[2].strip() if found else plain
