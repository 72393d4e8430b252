"""Devices and dtypes of weights, and weights that are on a device only while they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import nn

from packfuse.errors import ConfigError

_PLANS = ("auto", "balanced", "balanced_low_0", "sequential", "disk", "meta", "cpu")
"""Device maps of transformers that need no device but the processor."""


def check_dtype(name: str) -> None:
    """Look whether there is a dtype of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        raise ConfigError(f"dtype: {name!r} is unknown", hint="for example bfloat16, or auto")


def check_devices(device_map: str | Mapping[str, str | int] | None) -> None:
    """Look whether the devices of a device map are there.

    Raises:
        ConfigError: naming the first device that is not.
    """
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for name in dict.fromkeys(named):
        if name is not None and name not in _PLANS and (reason := _unavailable(name)):
            raise ConfigError(f"device_map: {name!r} {reason}", hint="use cpu, or auto")


def _unavailable(name: str | int) -> str | None:
    try:
        device = torch.device(name)
    except RuntimeError:
        return "is not a device"
    backend: Any = getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        return "is not available: this torch finds no such device"
    if (device.index or 0) >= backend.device_count():
        return f"is not available: there are {backend.device_count()} of this kind"
    return None


def execution_device(module: nn.Module) -> torch.device:
    """Where a module with a weight computes; an offloaded weight is elsewhere between calls."""
    weight: Any = module.weight
    hook = _hook(module)
    hooks = getattr(hook, "hooks", (hook,))
    placed = (getattr(one, "execution_device", None) for one in hooks)
    return torch.device(next((place for place in placed if place is not None), weight.device))


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are on the device only while they are used."""
    return any(_hook(module) is not None for module in model.modules())


def without_weights(model: nn.Module) -> str | None:
    """The name of a parameter without numbers that no hook provides; None if there is none."""
    if is_offloaded(model):
        return None
    return next((name for name, p in model.named_parameters() if p.device.type == "meta"), None)


def free_memory(device: torch.device) -> int:
    """Free memory of a device, in bytes; what torch holds without using it is free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)


def _hook(module: nn.Module) -> Any:
    return getattr(module, "_hf_hook", None)


def has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply matrices of bfloat16.

    Elsewhere torch computes them much slower than float32.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)
