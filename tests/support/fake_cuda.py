"""Tensors that say they are on a CUDA device, and count what the host waits for.

The numbers are on the processor, where everything is computed. So the code for CUDA runs without a
device, and a test counts operations, and how often the host would wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from packfuse import transfer
from packfuse.models.compute.graphs import plain_call
from packfuse.models.hf_member import HFMember
from packfuse.models.kv.static_step import StaticStep
from packfuse.models.kv.static_store import DecodeStores
from packfuse.models.static_member import StaticMember

CUDA = torch.device("cuda:0")

_READS = {
    "item", "tolist", "numpy", "cpu", "nonzero", "unique", "__bool__", "__float__", "__int__",
    "__index__", "masked_select", "equal", "allclose", "multinomial",
}  # fmt: skip

_VIEWS = {
    "__getitem__", "__get__", "view", "flatten", "unsqueeze", "squeeze", "expand", "narrow",
    "split", "transpose", "unbind", "__iter__", "__len__", "size", "dim", "detach",
}  # fmt: skip


@dataclass
class Waits:
    """What the host did.

    Attributes:
        begun: Number of copies to the host that were begun.
        there: How many of them are known to be complete.
        waits: Reasons why the host waited.
        operations: Number of operations on the device.
    """

    begun: int = 0
    there: int = 0
    waits: list[str] = field(default_factory=list)
    operations: int = 0


_now: list[Waits] = []
_models_running: list[object] = []


class OnCuda(torch.Tensor):
    """A tensor on the device that is not there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        owner = getattr(func, "__self__", None)
        if owner is Tensor.device:
            return CUDA
        if owner is Tensor.is_cuda:
            return True
        with torch._C.DisableTorchFunctionSubclass():
            if not _now or _models_running:
                return func(*args, **kwargs)
            waits = _now[-1]
            if name in _READS:
                waits.waits.append(name)
                found = func(*args, **kwargs)
                return found.as_subclass(Tensor) if isinstance(found, Tensor) else found
            if name == "copy_" and not isinstance(args[0], OnCuda):
                if not kwargs.get("non_blocking"):
                    waits.waits.append("copy_")
                waits.begun += 1
                return func(*args, **kwargs)
            if name == "__getitem__" and _reads_index(args[1]):
                waits.waits.append("index")
            if name in {"to", "type_as"}:
                if _goes_to_host((*args, *kwargs.values())):
                    return _to_host(func(*args, **kwargs), bool(kwargs.get("non_blocking")))
                return on_cuda(func(*_here(args), **_here_named(kwargs)))
            waits.operations += name not in _VIEWS
            return on_cuda(func(*_here(args), **_here_named(kwargs)))


def on_cuda(found: Any) -> Any:
    """Tensors in a result as tensors on the device."""
    if isinstance(found, Tensor):
        return found if isinstance(found, OnCuda) else found.as_subclass(OnCuda)
    if isinstance(found, tuple) and hasattr(found, "_fields"):
        return type(found)(*map(on_cuda, found))
    if type(found) in (tuple, list):
        return type(found)(map(on_cuda, found))
    if type(found).__module__ == "torch.return_types":
        return type(found)(map(on_cuda, found))
    return found


def _reads_index(index: Any) -> bool:
    """Whether an index has lists or masks, for which the host waits."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list) or (isinstance(part, Tensor) and part.dtype == torch.bool)
        for part in parts
    )


def _goes_to_host(values: Any) -> bool:
    return any(isinstance(value, torch.device) and value.type == "cpu" for value in values)


def _to_host(found: Tensor, non_blocking: bool) -> Tensor:
    """Numbers on the host; others if nobody waits until they are there."""
    if non_blocking:
        return torch.full_like(found.as_subclass(Tensor), torch.nan)
    _now[-1].waits.append("to")
    return found.as_subclass(Tensor)


def _is_there(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "cuda"


def _here(values: Any) -> Any:
    return tuple(torch.device("cpu") if _is_there(value) else value for value in values)


def _here_named(values: dict[str, Any]) -> dict[str, Any]:
    there = {name: torch.device("cpu") if _is_there(v) else v for name, v in values.items()}
    return {name: value for name, value in there.items() if name != "pin_memory"}


class _Device(TorchFunctionMode):
    """Functions that make tensors on the device, or move them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        moves = any(map(_is_there, (*args, *kwargs.values())))
        pins = kwargs.pop("pin_memory", False)
        if name == "pin_memory":
            return args[0]
        if not moves or _models_running or any(isinstance(a, OnCuda) for a in args):
            return func(*args, **kwargs)
        if name == "tensor" or (name == "to" and not kwargs.get("non_blocking")):
            _now[-1].waits.append(f"{name} to the device")
        elif name != "to":
            _now[-1].operations += 1
        del pins
        return on_cuda(func(*_here(args), **_here_named(kwargs)))


class _Event:
    """Completes when the host waits for it, and all copies that were begun before it."""

    def __init__(self) -> None:
        self._begun = _now[-1].begun

    def query(self) -> bool:
        """Whether the host knows that they are complete."""
        return self._begun <= _now[-1].there

    def synchronize(self) -> None:
        waits = _now[-1]
        if self._begun > waits.there:
            waits.waits.append("event")
        waits.there = max(waits.there, self._begun)


def _replayed(waits: Waits, run: Callable[..., Any]) -> Callable[..., Any]:
    """A step as a graph: one copy of its numbers, and one launch."""

    def replay(*args: Any) -> Any:
        with _computing():
            found = run(*args)
        waits.operations += 2
        return on_cuda(found)

    return replay


@contextmanager
def _computing() -> Iterator[None]:
    """A model runs: what it does is not counted."""
    _models_running.append(None)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            yield
    finally:
        _models_running.pop()


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """A context in which `FakeCudaMember`s compute, and what the host does is counted."""
    waits = Waits()
    with patch.context() as own:
        own.setattr(transfer, "_recorded", lambda _: _Event())
        own.setattr(StaticStep, "__call__", _replayed(waits, StaticStep.__call__))
        _now.append(waits)
        try:
            with _Device():
                yield waits
        finally:
            _now.pop()


class FakeCudaMember(StaticMember):
    """A member whose model computes on the processor, and seems to be on the device."""

    def __init__(self, member: HFMember) -> None:
        super().__init__(member)
        self._capture = plain_call
        self._stores = DecodeStores(self.context_window, lambda _: True)

    @property
    def device(self) -> torch.device:
        return CUDA

    def _run(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        with _computing():
            found: Tensor = model(**inputs).logits
        return on_cuda(found)
