"""What a model's weights take, read from the headers of their files alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_local_safetensors_metadata, snapshot_download

from packfuse.errors import LoadError
from packfuse.models.loading import split_gguf


@dataclass(frozen=True, slots=True)
class CheckpointSize:
    """Parameters by the dtype that they are stored in, such as `{"BF16": 268_098_176}`."""

    counts: dict[str, int]

    @property
    def parameters(self) -> int:
        """How many numbers."""
        return sum(self.counts.values())

    def memory_bytes(self, dtype: str = "auto") -> int:
        """Bytes once loaded as `dtype`; "auto" keeps what is stored."""
        if dtype == "auto":
            return sum(count * _bytes_each(name) for name, count in self.counts.items())
        return self.parameters * _bytes_each(dtype)


def checkpoint_size(model: str, revision: str | None = None) -> CheckpointSize:
    """Read the headers of a hub repository (nothing else is fetched), a folder or a GGUF file.

    Raises:
        LoadError: if there are no weights whose header can be read.
    """
    folder, gguf = split_gguf(model)
    try:
        if gguf:
            return _gguf(Path(folder) / gguf)
        if Path(folder).is_dir():
            return CheckpointSize(_counts(get_local_safetensors_metadata(folder)))
        return CheckpointSize(_counts(_hub(folder, revision)))
    except Exception as error:
        raise LoadError(
            f"no weights of {model!r} can be read: {_first_line(error)}",
            hint="safetensors are expected; other formats load with unsafe_weights only",
        ) from error


def _counts(metadata: Any) -> dict[str, int]:
    return {str(name): int(count) for name, count in metadata.parameter_count.items()}


def _hub(repository: str, revision: str | None) -> Any:
    """The headers on the hub or, without a connection, of what was fetched from it before."""
    try:
        return HfApi().get_safetensors_metadata(repository, revision=revision)
    except ConnectionError:
        folder = snapshot_download(repository, revision=revision, local_files_only=True)
        return get_local_safetensors_metadata(folder)


def _gguf(path: Path) -> CheckpointSize:
    """Transformers loads GGUF files as float32, however they are quantized."""
    from gguf import GGUFReader

    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file here")
    return CheckpointSize(
        {"F32": sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)}
    )


def _bytes_each(dtype: str) -> int:
    """Size of one number; names as in safetensors ("BF16") or torch ("bfloat16").

    Example:
        >>> [_bytes_each(name) for name in ("BF16", "float32", "F8_E4M3", "BOOL")]
        [2, 4, 1, 1]
    """
    bits = re.match(r"[a-zA-Z]+(\d+)", dtype)
    return max(1, int(bits[1]) // 8) if bits else 1


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
