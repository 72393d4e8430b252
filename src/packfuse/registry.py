"""Extension points find their parts by themselves: one file in the folder, one entry here."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from packfuse.errors import ConfigError

Part = TypeVar("Part", bound=BaseModel)


class Registry(Generic[Part]):
    """The named, concrete subclasses of `base` that live in `package`, one file each."""

    def __init__(self, kind: str, package: str, base: type[Part]) -> None:
        """`kind` is the word used in errors, for example "fusion rule"."""
        self.kind, self.package, self.base = kind, package, base
        self._parts: dict[str, type[Part]] | None = None

    @property
    def parts(self) -> dict[str, type[Part]]:
        """Class by name, sorted by name."""
        if self._parts is None:
            found = {_name(part): part for m in self._modules() for part in self._classes(m)}
            self._parts = dict(sorted(found.items()))
        return self._parts

    def _modules(self) -> Iterator[ModuleType]:
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            yield importlib.import_module(f"{self.package}.{info.name}")

    def _classes(self, module: ModuleType) -> Iterator[type[Part]]:
        for _, item in inspect.getmembers(module, inspect.isclass):
            named = not inspect.isabstract(item) and hasattr(item, "name")
            if named and item.__module__ == module.__name__ and issubclass(item, self.base):
                yield item

    def make(self, spec: str | Part | dict[str, Any]) -> Part:
        """A part from its name, from `{"name": ..., parameter: ...}`, or the part itself.

        Raises:
            ConfigError: for an unknown name (the known ones are listed) or a bad parameter.
        """
        if isinstance(spec, self.base):
            return spec
        if not isinstance(spec, str | dict):
            raise ConfigError(f"{spec!r} is no {self.kind}", hint=f"known: {', '.join(self.parts)}")
        fields = {"name": spec} if isinstance(spec, str) else dict(spec)
        name = fields.pop("name", None)
        if not isinstance(name, str) or name not in self.parts:
            raise ConfigError(f"unknown {self.kind} {name!r}", hint=suggest(name, self.parts))
        part = self.parts[name]
        try:
            return part(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "parameters"
            known = ", ".join(part.model_fields) or "none"
            raise ConfigError(
                f"{self.kind} {name!r}: {where}: {first['msg']}", hint=f"its parameters: {known}"
            ) from error

    def dump(self, part: Part) -> dict[str, Any]:
        """The part as `{"name": ..., parameter: ...}` of plain JSON types; `make` reads it."""
        return {"name": _name(part), **part.model_dump(mode="json")}

    def text(self, spec: dict[str, Any]) -> str:
        """A dumped part in words: its name, and those parameters that differ from their defaults.

        Example:
            >>> rules().text({"name": "unite", "k": 5})
            'unite(k=5)'
        """
        fields = self.parts[spec["name"]].model_fields
        own = {
            name: value
            for name, value in spec.items()
            if name in fields and value != fields[name].get_default()
        }
        inner = ", ".join(f"{name}={value}" for name, value in own.items())
        return f"{spec['name']}({inner})" if inner else str(spec["name"])


def suggest(name: object, known: Iterable[str]) -> str:
    """The hint for a wrong name: all known ones, and the nearest if one is near.

    Example:
        >>> suggest("unit", ["packllm", "unite"])
        "known: packllm, unite; did you mean 'unite'?"
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, 1)
    return f"known: {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")


def parse_spec(text: str) -> dict[str, Any]:
    """A part as people write it, `name:parameter=value,...`, for `Registry.make`.

    Example:
        >>> written("sim:tau=0.5,shrinkage=0")
        {'name': 'sim', 'tau': 0.5, 'shrinkage': 0}
    """
    name, _, rest = text.partition(":")
    found: dict[str, Any] = {"name": name}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} in {text!r} has no value", hint=f"write {name}:{item}=...")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{value!r} in {text!r} is no value", hint="quote it") from error
    return found


def _name(part: Any) -> str:
    """Its `name`, which parts have and plain pydantic models do not."""
    return str(part.name)


@cache
def rules() -> Registry[Any]:
    """The fusion rules."""
    from packfuse.fusion.rules.base import Rule

    return Registry("fusion rule", "packfuse.fusion.rules", Rule)


@cache
def weightings() -> Registry[Any]:
    """The weightings."""
    from packfuse.weighting.methods.base import Weighting

    return Registry("weighting", "packfuse.weighting.methods", Weighting)


@cache
def alignments() -> Registry[Any]:
    """The alignments."""
    from packfuse.alignment.base import Alignment

    return Registry("alignment", "packfuse.alignment", Alignment)


@cache
def drafts() -> Registry[Any]:
    """The ways to draft."""
    from packfuse.causal_lm.drafts.base import Draft

    return Registry("way to draft", "packfuse.causal_lm.drafts", Draft)


@cache
def gates() -> Registry[Any]:
    """The gates."""
    from packfuse.fusion.gates.base import Gate

    return Registry("gate", "packfuse.fusion.gates", Gate)


@cache
def tasks() -> Registry[Any]:
    """The tasks of `packfuse.evaluation`."""
    from packfuse.evaluation.tasks.base import Task

    return Registry("task", "packfuse.evaluation.tasks", Task)
