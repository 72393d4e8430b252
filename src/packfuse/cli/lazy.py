"""Commands whose modules are imported when they are called, so that help comes at once."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

ROOM = "packfuse.cli.commands"


class Commands(TyperGroup):
    """A group that lists its commands by their docstrings, and imports the one that is called.

    Importing all of them takes a third of a second.
    """

    panels: ClassVar[Mapping[str, Mapping[str, str]]]
    """By panel of the help, the commands' names, and the modules in `packfuse.cli.commands` that
    hold a function of the module's name."""

    def __init__(self, **settings: Any) -> None:
        """Settings are those of `TyperGroup`."""
        super().__init__(**settings)
        self._modules = {name: own for panel in self.panels.values() for name, own in panel.items()}
        self.commands = {
            name: TyperCommand(name, rich_help_panel=panel)
            for panel, group in self.panels.items()
            for name in group
        }

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command without its options, as lists show it; its docstring is read only then."""
        known = super().get_command(ctx, cmd_name)
        if known is not None and known.help is None:
            known.help = _summary(self._modules[cmd_name])
        return known

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that arguments call, with its options."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and self.loaded(str(name)), rest

    def loaded(self, name: str) -> Any:
        """A command of this group, with its options."""
        from packfuse.cli.command import Command, command

        function = getattr(import_module(f"{ROOM}.{self._modules[name]}"), self._modules[name])
        alone = typer.Typer(add_completion=False)
        alone.command(name, cls=Command)(command(function))
        return typer.main.get_command(alone)


def _summary(module: str) -> str:
    """The first paragraph of the docstring of a command, without importing its module."""
    source = pkgutil.get_data(ROOM, f"{module}.py") or b""
    functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    text = next(ast.get_docstring(node) or "" for node in functions if node.name == module)
    return " ".join(text.split("\n\n")[0].split())
