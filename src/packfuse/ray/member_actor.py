"""An actor that loads a member on its node, and serves it to the pack by the member protocol."""

from __future__ import annotations

import os
import threading

import ray
import uvicorn

from packfuse.models.loading import load_members
from packfuse.scheduler.admission import memory_limit
from packfuse.server.member import MemberLimits, create_member_app
from packfuse.server.serving import bound, configured
from packfuse.settings import PackConfig


class MemberActor:
    """A member in a process of its own. It ends with the process that made it."""

    def __init__(self, config: PackConfig, key: str) -> None:
        """Load the member, and listen.

        Args:
            config: A pack of this member alone, without a place.
            key: What clients have to know.
        """
        member = load_members(config)[0]
        limits = MemberLimits(api_key=key, max_cache=memory_limit("auto", [member]))
        self._listening = bound(ray.util.get_node_ip_address(), 0)
        self._server = uvicorn.Server(configured(create_member_app(member, limits), grace=0))
        for run in (self._run, self._end_with_process):
            threading.Thread(target=run, daemon=True).start()

    def _run(self) -> None:
        self._server.run(sockets=[self._listening])

    def _end_with_process(self) -> None:
        """End the process with its main thread, as Ray wants it; other threads may wait."""
        threading.main_thread().join()
        os._exit(0)

    def place(self) -> tuple[str, str]:
        """Address of the member, and id of its node."""
        host, port = self._listening.getsockname()[:2]
        node: str = ray.get_runtime_context().get_node_id()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", node

    def pid(self) -> int:
        """Id of its process: it answers while the process runs."""
        return os.getpid()
