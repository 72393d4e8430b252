"""A pack, written down: what `pack.yaml` holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator

from packfuse.errors import ConfigError
from packfuse.paths import write_text

Spec = str | dict[str, Any]
HeadsName = Literal["full", "pruned"]
HEADS: tuple[HeadsName, ...] = get_args(HeadsName)


class MemberSettings(BaseModel):
    """One member. Whatever is left out is taken from the pack.

    Attributes:
        model: Hub id, local folder, or path of a GGUF file.
        name: What the record calls it; the last part of `model` by default.
        tokenizer: Hub id or folder, where it is not `model`'s own.
        revision: Branch, tag or commit on the hub.
        dtype: "auto", "float32", "bfloat16", ...
        device_map: As in transformers.
        quantization: A transformers quantization configuration as a mapping with `quant_method`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    name: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device_map: str | dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None

    def beside(self, folder: Path) -> MemberSettings:
        """The same with model and tokenizer found in `folder`, where they lie there."""
        named = {"model": self.model, "tokenizer": self.tokenizer}
        places = {field: folder / name for field, name in named.items() if name}
        found = {field: str(place.resolve()) for field, place in places.items() if place.exists()}
        return self.model_copy(update=found)


class PackConfig(BaseModel):
    """A pack: members and how they are fused.

    Attributes:
        members: In order; plain strings are hub ids or folders.
        fusion: Rule by name, or with its parameters; likewise `weighting` and `alignment`.
        reference: "auto" (lowest prompt loss) or a member's name.
        gate: At which positions the members are fused: "every" or "safe".
        draft: How answers are drafted, to be checked in fewer passes; None for token by token.
        prefix_cache: Bytes for prompts kept from call to call, "auto", or 0.
        heads: "full", or "pruned": the others' output heads cut to what the alignment reads.
        parallel: Whether members read at the same time where they do not share a device.
        compiled: Whether members read single tokens and drafts in compiled code.
        dtype: For members that do not say otherwise; likewise `device_map`, `quantization`.
        trust_remote_code: Run code that comes with a model. Off unless asked for.
        unsafe_weights: Accept weights that are not safetensors (pickles run code). Off likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    members: list[MemberSettings] = Field(min_length=1)
    fusion: Spec = "packllm"
    weighting: Spec = "exact"
    alignment: Spec = "bytes"
    reference: str = "auto"
    draft: Spec | None = None
    gate: Spec = "every"
    prefix_cache: NonNegativeInt | Literal["auto"] = "auto"
    heads: HeadsName = "full"
    parallel: bool = False
    compiled: bool = False
    dtype: str = "auto"
    device_map: str | dict[str, Any] | None = None
    quantization: dict[str, Any] | None = None
    trust_remote_code: bool = False
    unsafe_weights: bool = False

    @field_validator("prefix_cache", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return ("auto" if value else 0) if isinstance(value, bool) else value

    @field_validator("members", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"model": item} if isinstance(item, str) else item for item in value]
        return value

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> PackConfig:
        """Read a YAML file; model folders in it may be relative to it.

        Raises:
            ConfigError: if it is missing, is not YAML, or does not describe a pack.
        """
        file = Path(path)
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{file} is not YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{file} does not hold a mapping", hint="it begins with `members:`")
        config = cls.check(data, str(file))
        members = [member.beside(file.parent) for member in config.members]
        return config.model_copy(update={"members": members})

    @classmethod
    def check(cls, data: dict[str, Any], where: str = "the configuration") -> PackConfig:
        """Validate plain data.

        Raises:
            ConfigError: naming the field, what is wrong, and the fields there are.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            known = ", ".join(cls.model_fields)
            raise ConfigError(
                f"{where}: {place}: {first['msg']}", hint=f"fields: {known}"
            ) from error

    def write(self, path: str | os.PathLike[str], comment: str = "") -> None:
        """Write a YAML file in one piece, after lines that begin with `#`."""
        text = yaml.safe_dump(
            self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True
        )
        write_text(Path(path), comment + text)
