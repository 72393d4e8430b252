"""The size of a model's weights, read from the headers of its files only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_local_safetensors_metadata, snapshot_download

from packfuse.errors import LoadError
from packfuse.models.loading.gguf.fields import gguf_header
from packfuse.models.loading.source import Source


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
