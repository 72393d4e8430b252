"""What members are loaded from, and how."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from packfuse.paths import exists
from packfuse.settings.base import Settings


class _Loading(Settings):
    """What decides how the weights of one or of all members are loaded; names as in transformers.

    None leaves the choice to transformers, in a member to the pack.
    """

    device_map: str | dict[str, Any] | None = None
    """Where the weights go: auto, cpu, cuda, ..., as in transformers."""
    max_memory: dict[int | str, int | str] | None = None
    """Most memory of each device for device_map=auto, as in {0: 10GiB, cpu: 30GiB}."""
    offload_folder: str | None = None
    """Folder of weights that device_map places on the disk."""
    quantization: dict[str, Any] | None = None
    """A transformers quantization configuration, as an object or a mapping: {load_in_4bit: true},
    or with its `quant_method`."""
    attn_implementation: str | None = None
    """Attention kernels: sdpa, eager, flash_attention_2, ..."""
    cache_dir: str | None = None
    """Folder of downloaded models, where it is not that of the Hugging Face libraries."""
    token: str | bool | None = Field(default=None, exclude=True, repr=False)
    """Access token for the hub; never written to a file."""

    @field_validator("offload_folder", "cache_dir", mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("device_map", mode="before")
    @classmethod
    def _plain_device(cls, value: Any) -> Any:
        if isinstance(value, int):
            return {"": value}
        if isinstance(value, Mapping):
            return {name: _device_name(device) for name, device in value.items()}
        return _device_name(value)

    @field_validator("quantization", mode="before")
    @classmethod
    def _plain_quantization(cls, value: Any) -> Any:
        return _plain(value.to_dict() if hasattr(value, "to_dict") else value)


def _dtype_name(value: Any) -> Any:
    return value if value is None else str(value).removeprefix("torch.")


def _device_name(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int) else str(value)


def _plain(value: Any) -> Any:
    """A value as YAML can hold it: enumerations and dtypes become their names."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _dtype_name(value)


class LoadSettings(_Loading):
    """How members are loaded, where a member does not say otherwise."""

    dtype: str = "auto"
    """Type of the weights: auto, float32, bfloat16, ..."""
    trust_remote_code: bool = False
    """Run code that comes with a model. A file cannot set it."""
    unsafe_weights: bool = False
    """Accept weights that are not safetensors; pickled weights can run code. A file cannot set
    it."""

    _name_of_dtype = field_validator("dtype", mode="before")(_dtype_name)


TRUST = ("trust_remote_code", "unsafe_weights")
"""Settings that let a model do more than compute: whoever loads a pack sets them, never a file."""


KEY_PREFIX = "PACKFUSE_"
"""How environment variables begin that a file may name: it could send any other one anywhere."""


_SERVED = ("api", "api_key_env", "candidates", "transfer_dtype", "timeout")
"""Fields of members in a server."""
TRANSFORMERS_ONLY = (
    "device_map", "max_memory", "offload_folder", "quantization", "attn_implementation", "dtype",
)  # fmt: skip
"""Fields of members that transformers loads."""
_LOADED = (*TRANSFORMERS_ONLY, "engine", "n_gpu_layers", "ray")
"""Fields of members in this process."""

EngineName = Literal["auto", "llama.cpp", "transformers"]
LLAMA_CPP: Final = "llama.cpp"
TRANSFORMERS: Final = "transformers"


class RayPlace(Settings):
    """What a member takes of a node in a cluster of Ray."""

    num_cpus: NonNegativeFloat = 1.0
    """Processors."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs; parts of one are possible."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """What nodes were started with besides, by name."""

    @property
    def amounts(self) -> dict[str, float]:
        """All of it by Ray's names, without zeros."""
        own = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in own.items() if amount}


class MemberSettings(_Loading):
    """One member. Whatever is left out is taken from the pack's `LoadSettings`."""

    model: str = ""
    """Hub id, local folder, or path of a GGUF file; with `url`, its name on the server."""
    name: str | None = None
    """What records and errors call it; the last part of `model` by default."""
    tokenizer: str | None = None
    """Hub id, folder or GGUF file, where it is not the model's own."""
    url: str | None = None
    """Address of a server that runs the model, as in http://127.0.0.1:8080."""
    api: str = "auto"
    """Kind of the server; auto: find out. Known: llama.cpp, vllm, sglang, packfuse."""
    api_key_env: str | None = None
    """Environment variable with the server's key; in a file, one that begins with PACKFUSE_."""
    candidates: PositiveInt | None = None
    """Most tokens that the server names at each place; 256 or its own limit by default, and all
    with another packfuse."""
    transfer_dtype: Literal["float32", "float16"] | None = None
    """Type of the log-probabilities that another packfuse sends; float32 by default."""
    timeout: PositiveFloat = 60.0
    """Longest time without an answer of the server, in seconds."""
    ray: RayPlace | None = None
    """Node of a cluster that loads it: `num_cpus`, `num_gpus`, `resources`; for `packfuse deploy`
    and `packfuse batch --ray`."""
    engine: EngineName = "auto"
    """What runs a GGUF file in this process: llama.cpp, as it is, or transformers, with its weights
    expanded; auto: llama.cpp where `packfuse[llama-cpp]` is installed and no setting needs
    transformers."""
    n_gpu_layers: int | None = Field(default=None, ge=-1)
    """How many layers llama.cpp puts on GPUs; -1: all, the default where it has support for
    them."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    subfolder: str | None = None
    """Folder of the model inside its repository or folder."""
    dtype: str | None = None
    """Type of the weights."""

    _name_of_dtype = field_validator("dtype", mode="before")(_dtype_name)

    @model_validator(mode="after")
    def _here_or_in_a_server(self) -> Self:
        useless = _SERVED if self.url is None else _LOADED
        if given := self.given(useless):
            why = "of effect with a url only" if self.url is None else "of no effect with a url"
            raise ValueError(f"{', '.join(given)}: {why}")
        return self

    @model_validator(mode="after")
    def _of_one_engine(self) -> Self:
        own: dict[str, tuple[str, ...]] = {
            LLAMA_CPP: TRANSFORMERS_ONLY,
            TRANSFORMERS: ("n_gpu_layers",),
        }
        if given := self.given(own.get(self.wanted_engine, ())):
            raise ValueError(f"{', '.join(given)}: of no effect with engine={self.wanted_engine!r}")
        return self

    @property
    def wanted_engine(self) -> EngineName:
        """`engine`; llama.cpp if a setting of it is given."""
        named = self.engine == "auto" and self.n_gpu_layers is not None
        return LLAMA_CPP if named else self.engine

    def given(self, fields: Iterable[str]) -> list[str]:
        """Those of the fields that do not have their default."""
        known = type(self).model_fields
        return [name for name in fields if getattr(self, name) != known[name].default]

    def beside(self, folder: Path) -> MemberSettings:
        """The same with model and tokenizer found in `folder`, where they are there."""
        named = {"model": self.model, "tokenizer": self.tokenizer}
        places = {field: folder / name for field, name in named.items() if name}
        found = {field: str(place.resolve()) for field, place in places.items() if exists(place)}
        return self.model_copy(update=found)
