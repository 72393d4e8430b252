"""Steps that are captured once and repeated: CUDA graphs, or a plain call where there are none."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch

from packfuse.hf_compat.models import abandon_capture
from packfuse.models.kv.static_step import Outputs

_WARM_UPS = 2
"""How often a step runs before it is captured: libraries allocate what they need."""

_CAPTURING = threading.Lock()
"""Held while a step is captured. The process captures one graph at a time: the allocator must not
release memory, which every capture begins with, during another one."""


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
        self._graphs: WeakSet[Any] = WeakSet()

    def __call__(self, step: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture a step; its result runs it.

        Raises:
            RuntimeError: if the step does what cannot be captured.
        """
        with _CAPTURING, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            stream = _capture_stream(self._device)
            stream.wait_stream(current)
            try:
                # Also where a failed capture has left another stream behind.
                with torch.cuda.stream(stream):
                    for _ in range(_WARM_UPS):
                        step()
                    # A capture that fails leaves torch's allocator unusable. So this is found out
                    # before it begins.
                    if place := waiting_place(step):
                        raise RuntimeError(f"it waits for the device ({place})")
                    graph, outputs = self._captured(step, stream)
            finally:
                current.wait_stream(stream)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _captured(self, step: Callable[[], Outputs], stream: Any) -> tuple[Any, Outputs]:
        """The graph of a step, and the tensors that it writes."""
        # The memory of graphs that are all gone cannot be used again under its old name.
        alive: Any = next(iter(self._graphs), None)
        pool: Any = torch.cuda.graph_pool_handle() if alive is None else alive.pool()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                outputs = step()
        except BaseException:
            abandon_capture(self._device, pool)
            raise
        self._graphs.add(graph)
        return graph, outputs


@cache
def _capture_stream(device: torch.device) -> Any:
    """The stream on which all steps of a device are captured.

    Graphs that share memory need one stream, and torch keeps the workspaces of cuBLAS (64 MiB on an
    H200) by stream for as long as the process lives.
    """
    return torch.cuda.Stream(device)


def waiting_place(step: Callable[[], Outputs]) -> str | None:
    """Run a step; the file and line where this thread waits for a CUDA device, None if nowhere."""
    here, places = threading.get_ident(), list[str]()

    def note(message: Warning | str, _kind: Any, file: str, line: int, *_: Any) -> None:
        if threading.get_ident() == here and "synchronizing CUDA operation" in str(message):
            places.append(f"{Path(file).name}, line {line}")

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        # Not "error": the mode applies to other threads, too, which may wait.
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return places[0] if places else None


def first_cause(error: BaseException) -> BaseException:
    """The error that others followed from: a capture that failed ends with one of its own."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return error
