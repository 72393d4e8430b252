"""The size of a model's weights, read from the headers of its files, and whether there is room."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_local_safetensors_metadata, snapshot_download

from packfuse.errors import LoadError, PackError
from packfuse.models.devices import free_memory
from packfuse.models.loading.gguf.fields import gguf_header
from packfuse.models.loading.source import Source

SPARE = 1.05
"""Memory that weights take on a device, in their own size: buffers and rounding up."""


@dataclass(frozen=True, slots=True)
class CheckpointSize:
    """Number of parameters by the dtype in which they are stored: `{"BF16": 268_098_176}`."""

    counts: dict[str, int]

    @property
    def parameters(self) -> int:
        """Number of parameters of all dtypes together."""
        return sum(self.counts.values())

    def memory_bytes(self, dtype: str = "auto") -> int:
        """Bytes of memory of the weights loaded as `dtype`; "auto" keeps the stored dtypes."""
        if dtype == "auto":
            return sum(count * _bytes_each(name) for name, count in self.counts.items())
        return self.parameters * _bytes_each(dtype)


def checkpoint_size(source: Source) -> CheckpointSize:
    """Read the headers of the weight files of a model: of one on the hub, nothing else is fetched.

    Raises:
        LoadError: if no file of weights has a header that can be read.
    """
    try:
        if source.gguf:
            return _gguf(Path(source.place, source.gguf))
        if source.folder:
            return CheckpointSize(_counts(get_local_safetensors_metadata(source.folder)))
        return CheckpointSize(_counts(_hub(source)))
    except Exception as error:
        raise LoadError(
            f"no weights of {source.place!r} can be read: {_first_line(error)}",
            hint="safetensors are expected; other formats load with unsafe_weights only",
        ) from error


def _counts(metadata: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in metadata.parameter_count.items()}


def _hub(source: Source) -> Any:
    """Headers of the files on the hub; without a connection, of files in the local cache."""
    revision, token = source.hub.get("revision"), source.hub.get("token")
    try:
        api = HfApi(token=token)
        return api.get_safetensors_metadata(source.place, revision=revision)
    except ConnectionError:
        folder = snapshot_download(
            source.place,
            revision=revision,
            cache_dir=source.hub.get("cache_dir"),
            local_files_only=True,
        )
        return get_local_safetensors_metadata(Path(folder, source.hub.get("subfolder", "")))


def _gguf(path: Path) -> CheckpointSize:
    """Size of a GGUF file, which transformers loads as float32 whatever its quantization."""
    return CheckpointSize({"F32": gguf_header(path).parameters})


def weights_on(source: Source, how: Mapping[str, Any]) -> tuple[torch.device, int] | None:
    """The accelerator on which a model is loaded, and the bytes of its weights there.

    Args:
        source: Where the model is.
        how: Arguments of `from_pretrained`.

    Returns:
        None if it goes to processors or to several devices, or if its size is not known before:
        quantized weights, and files whose headers cannot be read.
    """
    place = how.get("device_map")
    if not isinstance(place, str | int) or how.get("quantization_config") is not None:
        return None
    try:
        device = torch.device(place)
        if device.type in ("cpu", "meta"):
            return None
        return device, checkpoint_size(source).memory_bytes(how["dtype"])
    except (RuntimeError, PackError):
        return None  # "auto" is no device, and what cannot be read is refused when it is loaded


def check_headroom(wanted: Mapping[str, tuple[torch.device, int]]) -> None:
    """Refuse members that do not fit on their devices together.

    Args:
        wanted: By member, its device and the bytes of its weights.

    Raises:
        LoadError: naming the members of the device, what they need and what is free.
    """
    for device in dict.fromkeys(device for device, _ in wanted.values()):
        sizes = {name: size for name, (place, size) in wanted.items() if place == device}
        needed, free = SPARE * sum(sizes.values()), free_memory(device)
        if needed > free:
            names = ", ".join(f"{name!r} {size / 2**30:.1f} GiB" for name, size in sizes.items())
            raise LoadError(
                f"{device} has {free / 2**30:.1f} GiB of free memory, and the weights need "
                f"{needed / 2**30:.1f} GiB: {names}",
                hint="use a smaller dtype, a quantization, device_map='auto', or another device",
            )


def _bytes_each(dtype: str) -> int:
    """Bytes of one parameter; names as in safetensors ("BF16") or torch ("bfloat16").

    Example:
        >>> [_bytes_each(name) for name in ("BF16", "float32", "F8_E4M3", "BOOL")]
        [2, 4, 1, 1]
    """
    bits = re.match(r"[a-zA-Z]+(\d+)", dtype)
    return max(1, int(bits[1]) // 8) if bits else 1


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
