"""What all settings have in common: frozen fields, checked with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from packfuse.errors import ConfigError

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
