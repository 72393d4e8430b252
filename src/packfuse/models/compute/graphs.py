"""Steps that are captured once and repeated: CUDA graphs, or a plain call where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from packfuse.models.kv.static_step import Outputs

_WARM_UPS = 2
"""How often a step runs before it is captured: libraries allocate what they need."""


def plain_call(step: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """The step itself, for devices without graphs."""
    return step


class CudaGraphs:
    """Captures the steps of one member as CUDA graphs that share their memory.

    A step has to read and write the same tensors each time, and must not wait for the device. Its
    outputs are overwritten by the next step of the member.
    """

    def __init__(self, device: torch.device) -> None:
        """Graphs on one device."""
        self._device = device
        self._pool: Any = None

    def __call__(self, step: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture a step; its result runs it.

        Raises:
            RuntimeError: if the step does what cannot be captured.
        """
        with torch.cuda.device(self._device):
            beside: Any = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = step()
            self._pool = self._pool or graph.pool()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay
