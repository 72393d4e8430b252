"""A pack as a YAML file holds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator

from packfuse.errors import ConfigError
from packfuse.paths import write_named
from packfuse.settings.loading import KEY_PREFIX, TRUST, LoadSettings, MemberSettings
from packfuse.settings.pack import PackSettings


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

    @field_validator("members")
    @classmethod
    def _one_member_a_server(cls, value: list[MemberSettings]) -> list[MemberSettings]:
        served = [(m.url.rstrip("/"), m.model) for m in value if m.url]
        if twice := next((one for one in served if served.count(one) > 1), None):
            raise ValueError(f"two members are at {twice[0]}, with the same model")
        return value

    @classmethod
    def read(cls, path: str | os.PathLike[str], **overrides: Any) -> PackConfig:
        """Read a YAML file; model folders in it may be relative to it.

        Args:
            path: The file.
            **overrides: Fields that count instead of the file's.

        Raises:
            ConfigError: if it is missing, is not YAML, does not describe a pack, sets one of
                `TRUST` that is not among the overrides, or names an environment variable that
                does not begin with `KEY_PREFIX`.
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
    def read_named(
        cls, path: str | os.PathLike[str], name: str, **overrides: Any
    ) -> dict[str, PackConfig]:
        """Read a YAML file with one pack or several; a single one is called `name`.

        Raises:
            ConfigError: as for `read`.
        """
        return cls.read_several(path, **overrides) or {name: cls.read(path, **overrides)}

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
        for member in config.members:
            if member.api_key_env and not member.api_key_env.startswith(KEY_PREFIX):
                raise ConfigError(
                    f"{where} reads the environment variable {member.api_key_env}: a file can name "
                    f"only those that begin with {KEY_PREFIX}",
                    hint="rename the variable, or give the members in Python",
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
        write_named(path, text.encode())


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
