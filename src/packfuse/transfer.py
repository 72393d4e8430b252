"""Numbers on their way between the host and a device, without waiting where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def host_tensor(values: Any, device: torch.device) -> Tensor:
    """A tensor on the host of numbers that are about to be copied to a device.

    For CUDA its memory is pinned, so that a copy with `non_blocking=True` does not wait.
    """
    return torch.tensor(values, pin_memory=device.type == "cuda")


def upload(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers on a device; the host does not wait until they are there.

    Args:
        values: Nested lists of numbers, or a tensor.
        device: The device.
        dtype: Type of the numbers; None for that of the values.
    """
    if not isinstance(values, Tensor):
        values = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    elif device.type == "cuda" and values.device.type == "cpu" and not values.is_pinned():
        values = values.pin_memory()
    return move(values, device, dtype)


def move(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on another device; the host waits only where the numbers come to the host."""
    # Without that, the host would read them before they are there.
    moved: Tensor = tensor.to(device, dtype, non_blocking=device.type != "cpu")
    return moved


class Constant:
    """A tensor that never changes, copied once to each device that needs it."""

    def __init__(self, tensor: Tensor) -> None:
        """Start with the tensor where it is."""
        self.tensor = tensor
        self._moved = {tensor.device: tensor}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device."""
        if device not in self._moved:
            self._moved[device] = upload(self.tensor, device)
        return self._moved[device]

    def __len__(self) -> int:
        """Size of the first dimension."""
        return len(self.tensor)


class Download:
    """Tensors on their way to the host: copied as soon as they are computed, waited for once.

    Attributes:
        done: Whether the numbers are there.

    Example:
        >>> later = Download([torch.tensor([1.0, 2.0])])
        >>> later.wait()
        [array([1., 2.], dtype=float32)]
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Begin to copy tensors, whatever their devices."""
        self._copies: list[Tensor] = []
        devices = set[torch.device]()
        for tensor in tensors:
            if tensor.device.type == "cuda":
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._copies.append(copy.copy_(tensor, non_blocking=True))
                devices.add(tensor.device)
            else:
                self._copies.append(tensor.cpu())
        self._events = [_recorded(device) for device in devices]
        self.done = not devices

    def wait(self) -> list[NDArray[Any]]:
        """The tensors as arrays, once they are there; the host waits once for each device."""
        for event in self._events:
            # What was copied before something that the host has waited for is there.
            if not event.query():
                event.synchronize()
        self._events, self.done = [], True
        return [copy.numpy() for copy in self._copies]


def download(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Tensors as arrays on the host, for which the host waits once for each device."""
    return Download(tensors).wait()


def _recorded(device: torch.device) -> Any:
    event: Any = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
