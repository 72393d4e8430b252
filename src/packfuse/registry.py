"""Extension points: named parts, found in a room of the package and in installed plugins.

A room with parts makes one `Registry`. A part of the package is one file in that room; a part of
another package is an entry point in the group of the same name, for example:

    [project.entry-points."packfuse.rules"]
    median = "my_package.rules:Median"
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from packfuse.errors import ConfigError

P = TypeVar("P", bound=BaseModel)


class Registry(Generic[P]):
    """The named, concrete subclasses of one interface.

    Attributes:
        kind: What errors call a part, for example "fusion rule".
        group: Group of the entry points that name parts of other packages.
        package: Package whose modules hold the parts of packfuse.
        base: The interface.
    """

    def __init__(self, kind: str, group: str, package: str, base: type[P]) -> None:
        """Nothing is imported before `parts` is asked for."""
        self.kind, self.group, self.package, self.base = kind, group, package, base
        self._parts: dict[str, type[P]] | None = None

    @property
    def parts(self) -> dict[str, type[P]]:
        """Class by name, sorted by name.

        Warns:
            RuntimeWarning: for a plugin that cannot be used; it is left out.
        """
        if self._parts is None:
            own = {_name(part): part for m in self._modules() for part in self._classes(m)}
            self._parts = dict(sorted({**dict(self._plugins(own)), **own}.items()))
        return self._parts

    def _modules(self) -> Iterator[ModuleType]:
        package = importlib.import_module(self.package)
        for info in pkgutil.iter_modules(package.__path__):
            if not info.ispkg:
                yield importlib.import_module(f"{self.package}.{info.name}")

    def _classes(self, module: ModuleType) -> Iterator[type[P]]:
        for _, item in inspect.getmembers(module, inspect.isclass):
            named = not inspect.isabstract(item) and hasattr(item, "name")
            if named and item.__module__ == module.__name__ and issubclass(item, self.base):
                yield item

    def _plugins(self, own: Iterable[str]) -> Iterator[tuple[str, type[P]]]:
        for entry in entry_points(group=self.group):
            problem = f"packfuse has a {self.kind} of that name" if entry.name in own else ""
            part = None
            if not problem:
                part, problem = self._load(entry)
            if part is None:
                warnings.warn(
                    f"the {self.kind} {entry.name!r} ({entry.value}) is left out: {problem}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                yield entry.name, part

    def _load(self, entry: EntryPoint) -> tuple[type[P] | None, str]:
        """The class that an entry point names, or None and why it cannot be used."""
        try:
            part = entry.load()
        except Exception as error:  # other people's code may raise anything when it is imported
            return None, f"{type(error).__name__}: {error}"
        if not (inspect.isclass(part) and issubclass(part, self.base)):
            return None, f"it is no subclass of {self.base.__module__}.{self.base.__name__}"
        if inspect.isabstract(part) or getattr(part, "name", None) != entry.name:
            return None, f"its class has to be concrete, with name = {entry.name!r}"
        return part, ""

    def make(self, spec: Any) -> P:
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

    def dump(self, part: P) -> dict[str, Any]:
        """The part as `{"name": ..., parameter: ...}` of plain JSON types; `make` reads it."""
        return {"name": _name(part), **part.model_dump(mode="json")}

    def text(self, spec: dict[str, Any]) -> str:
        """A dumped part in words: its name, and those parameters that differ from their defaults.

        Example:
            >>> from packfuse.fusion.rules import rules
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
    near = nearest(name, known)
    return f"known: {', '.join(known)}" + (f"; {near}" if near else "")


def nearest(name: object, known: Iterable[str]) -> str:
    """The question whether the nearest of the known names is meant; empty if none is near.

    Example:
        >>> nearest("unit", ["packllm", "unite"])
        "did you mean 'unite'?"
    """
    near = difflib.get_close_matches(str(name), sorted(known), 1)
    return f"did you mean {near[0]!r}?" if near else ""


def parse_spec(text: str) -> dict[str, Any]:
    """A part as people write it, `name:parameter=value,...`, for `Registry.make`.

    Example:
        >>> parse_spec("sim:tau=0.5,shrinkage=0")
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
