"""What a pack can be set to, once: `Pack`, pack.yaml, the command line and front ends use it.

The docstring of a field is its documentation everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from packfuse.errors import ConfigError
from packfuse.paths import exists, write_text

Part = str | dict[str, Any] | SerializeAsAny[BaseModel]
"""A part of a pack: its name, `{"name": ..., parameter: ...}`, or the object itself."""

HeadsName = Literal["full", "pruned"]
HEADS: tuple[HeadsName, ...] = get_args(HeadsName)
PARTS = ("fusion", "weighting", "alignment", "draft", "gate")
"""Fields that take a part."""


SCHEDULING = ("max_rows", "max_cache", "max_waiting")
"""Fields that say how many calls are answered at once; they change no answer."""

OTHER_NAMES = {"quantization_config": "quantization", "torch_dtype": "dtype"}
"""Names that transformers has for some fields, and the fields."""


class Settings(BaseModel):
    """A frozen set of fields, checked with errors that name the field and what is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def check(cls, data: Mapping[str, Any], where: str = "the configuration") -> Self:
        """Validate plain data.

        Raises:
            ConfigError: naming the field, what is wrong with it, and the fields there are.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problem = str(first["msg"]).removeprefix("Value error, ")
            known = ", ".join(cls.model_fields)
            place = ": ".join(filter(None, (where, field)))
            raise ConfigError(f"{place}: {problem}", hint=f"fields: {known}") from error

    @classmethod
    def of(cls, other: Settings) -> Self:
        """These fields of larger settings."""
        return cls.check({name: getattr(other, name) for name in cls.model_fields})

    @property
    def values(self) -> dict[str, Any]:
        """The fields as they are, parts as objects where they were given so."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def replace(self, **changes: Any) -> Self:
        """The same with other values for some fields.

        Raises:
            ConfigError: for an unknown field or an unusable value.
        """
        return type(self).check({**self.values, **_renamed(changes)}) if changes else self

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        return _renamed(data) if isinstance(data, Mapping) else data


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names of the fields.

    Raises:
        ValueError: if a field is given under two names.
    """
    for name in OTHER_NAMES.keys() & data.keys():
        if OTHER_NAMES[name] in data:
            raise ValueError(f"{name} is another name of {OTHER_NAMES[name]}; give one of them")
    return {OTHER_NAMES.get(name, name): value for name, value in data.items()}


class PackSettings(Settings):
    """How the members of a pack are fused and run."""

    fusion: Part = "packllm"
    """Fusion rule: how next-token distributions are combined."""
    weighting: Part = "exact"
    """How the members are weighted on a prompt; {member: weight} for fixed weights."""
    alignment: Part = "bytes"
    """How vocabularies are compared."""
    reference: str = "auto"
    """Member whose tokens are generated; auto: lowest prompt loss, in a chat most skilled."""
    draft: Part | None = None
    """Speculative decoding: how tokens are drafted before the pack verifies them in one pass. The
    answers are the same, in bfloat16 and float16 up to rounding; none: token by token."""
    gate: Part = "every"
    """At which positions the members are fused; elsewhere the reference decides alone."""
    heads: HeadsName = "full"
    """pruned: the other members' LM heads compute only the logits that the alignment reads. Faster
    where their vocabularies are larger, slightly less exact; weights stay the same."""
    prefix_cache: NonNegativeInt | Literal["auto"] = "auto"
    """Prefix KV cache in bytes; auto: 6 % of the size of the models; 0: off."""
    max_rows: PositiveInt = 16
    """Most answers that are decoded at the same time; further calls wait."""
    max_cache: PositiveInt | Literal["auto"] = "auto"
    """Most bytes of the KV caches of these answers; auto: half of the memory that is free when the
    first call comes."""
    max_waiting: PositiveInt = 1000
    """Most prompts that may wait; further calls raise BusyError."""
    parallel: bool = False
    """Experimental: members on different devices run at the same time. On processors it is slower
    than one after the other."""
    compiled: bool = False
    """Experimental: steps of single tokens and drafts run in code compiled by torch. Compiling
    takes up to a minute for each kind of step. Excludes parallel."""

    @field_validator("weighting", mode="before")
    @classmethod
    def _fixed_weights(cls, value: Any) -> Any:
        return weighting_part(value)

    @field_validator("draft", mode="before")
    @classmethod
    def _no_draft(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("prefix_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ("auto" if value else 0) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _parallel_or_compiled(self) -> Self:
        if self.parallel and self.compiled:
            raise ValueError("choose one of parallel=True and compiled=True")
        return self

    @field_serializer(*PARTS)
    def _plain_part(self, value: Any) -> Any:
        return plain_part(value)

    @property
    def changes_answers(self) -> dict[str, Any]:
        """The settings that can change an answer, as plain JSON types, for caches."""
        return self.model_dump(mode="json", include=_CHANGES_ANSWERS)


# What is sampled with a seed depends on the draft, though its distribution does not.
_CHANGES_ANSWERS = {*PARTS, "reference", "heads", "compiled"}


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


class MemberSettings(_Loading):
    """One member. Whatever is left out is taken from the pack's `LoadSettings`."""

    model: str
    """Hub id, local folder, or path of a GGUF file."""
    name: str | None = None
    """What records and errors call it; the last part of `model` by default."""
    tokenizer: str | None = None
    """Hub id or folder, where it is not the model's own."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    subfolder: str | None = None
    """Folder of the model inside its repository or folder."""
    dtype: str | None = None
    """Type of the weights."""

    _name_of_dtype = field_validator("dtype", mode="before")(_dtype_name)

    def beside(self, folder: Path) -> MemberSettings:
        """The same with model and tokenizer found in `folder`, where they are there."""
        named = {"model": self.model, "tokenizer": self.tokenizer}
        places = {field: folder / name for field, name in named.items() if name}
        found = {field: str(place.resolve()) for field, place in places.items() if exists(place)}
        return self.model_copy(update=found)


class PackConfig(PackSettings, LoadSettings):
    """A pack written down, as `pack.yaml` holds it: its members and its settings."""

    version: Literal[1] = 1
    """Format of the file."""
    members: list[MemberSettings] = Field(min_length=1)
    """In order; plain strings are hub ids or folders."""

    @field_validator("members", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"model": item} if isinstance(item, str) else item for item in value]
        return value

    @classmethod
    def read(cls, path: str | os.PathLike[str], **overrides: Any) -> PackConfig:
        """Read a YAML file; model folders in it may be relative to it.

        Args:
            path: The file.
            **overrides: Fields that count instead of the file's.

        Raises:
            ConfigError: if it is missing, is not YAML, does not describe a pack, or sets one of
                `TRUST` that is not among the overrides.
        """
        file = Path(path)
        return cls._made(_read_yaml(file), file, str(file), overrides)

    @classmethod
    def read_several(
        cls, path: str | os.PathLike[str], **overrides: Any
    ) -> dict[str, PackConfig] | None:
        """Read a YAML file with several packs: `packs`, a mapping from names to packs.

        Args:
            path: The file.
            **overrides: As for `read`; they count in all packs.

        Returns:
            The packs by name; None for a file that describes one pack.

        Raises:
            ConfigError: as for `read`, naming the pack.
        """
        file = Path(path)
        data = _read_yaml(file)
        if "packs" not in data:
            return None
        packs, others = data["packs"], [name for name in data if name not in ("packs", "version")]
        if not isinstance(packs, dict) or not packs or others:
            raise ConfigError(
                f"{file}: packs maps names to packs, and nothing stands beside it",
                hint="write each pack as in a pack.yaml, below its name",
            )
        return {
            str(name): cls._made(own, file, f"{file}: {name}", overrides)
            for name, own in packs.items()
        }

    @classmethod
    def _made(cls, data: Any, file: Path, where: str, overrides: Mapping[str, Any]) -> PackConfig:
        """A pack from the data of a file."""
        if not isinstance(data, dict):
            raise ConfigError(f"{where} does not hold a mapping", hint="it begins with `members:`")
        config = cls.check(data, where)
        widened = [name for name in TRUST if getattr(config, name) and name not in overrides]
        if widened:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in widened)
            raise ConfigError(
                f"{where} sets {' and '.join(widened)}, which only the one who loads the pack can",
                hint=f"if you trust its models, pass {widened[0]}=True ({options})",
            )
        members = [member.beside(file.parent) for member in config.members]
        return config.model_copy(update={"members": members}).replace(**overrides)

    def write(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write a YAML file in one piece, after lines that begin with `#`; without `TRUST`.

        Raises:
            ConfigError: if it cannot be written.
        """
        data = self.model_dump(exclude_none=True, exclude={*TRUST})
        ordered = {"version": data.pop("version"), "members": data.pop("members"), **data}
        text = comment + yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True)
        try:
            write_text(Path(path), text)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot write {os.fspath(path)!r}: {reason}") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        ConfigError: if the file is missing, or is no YAML of a mapping.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {str(file)!r}: {reason}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} does not hold a mapping", hint="it begins with `members:`")
    return data


def weighting_part(value: Any) -> Any:
    """A weighting as a part: `{member: weight}` is short for fixed weights."""
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": "fixed", "weights": dict(value)}
    return value


def plain_part(value: Any) -> Any:
    """A part as plain JSON types; names and mappings stay as they are."""
    if isinstance(value, BaseModel):
        return {"name": getattr(value, "name", None), **value.model_dump(mode="json")}
    return value
