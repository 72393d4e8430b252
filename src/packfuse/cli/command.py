"""Makes commands from functions: option groups, `--json`, errors, and names of parts in help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperOption

from packfuse.alignment import alignments
from packfuse.causal_lm.drafts import drafts
from packfuse.cli.screen import Screen
from packfuse.errors import PackError
from packfuse.fusion.gates import gates
from packfuse.fusion.rules import rules
from packfuse.registry import Registry
from packfuse.weighting.methods import weightings

PARTS: dict[str, Callable[[], Registry[Any]]] = {
    "fusion": rules,
    "weighting": weightings,
    "alignment": alignments,
    "draft": drafts,
    "gate": gates,
}
"""Registries of the options that take a part, loaded when they are needed (about a second)."""

_JSON = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


class Command(TyperCommand):
    """A command whose help lists the names of the known parts."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Add the names of the parts when help is shown."""
        for option in self.params:
            if isinstance(option, TyperOption) and option.name in PARTS:
                known = ", ".join(PARTS[option.name]().parts)
                option.help = f"{option.help} Known: {known}."
        super().format_help(ctx, formatter)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command from a function.

    The function gets a `Screen` as its first argument. Each field of a parameter that is a
    dataclass becomes an option, and `--json` is added. A `PackError` is printed, and ends the
    command with status 1.
    """
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    spread = {parameter.name for parameter in own if is_dataclass(parameter.annotation)}
    groups: dict[str, Any] = {p.name: p.annotation for p in own if p.name in spread}
    flat = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.name not in groups]
    flat += [parameter for group in groups.values() for parameter in _parameters(group)]
    flat.append(
        inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON
        )
    )

    def run(**given: Any) -> None:
        screen = Screen(given.pop("as_json"))
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        try:
            function(screen, **given)
        except PackError as error:
            screen.fail(error)
            raise typer.Exit(1) from error

    run.__name__, run.__doc__ = function.__name__, _reflowed(function.__doc__ or "")
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run


def _reflowed(text: str) -> str:
    """A docstring with one line per paragraph, so that help is wrapped to the terminal's width."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    """The fields of a dataclass as keyword parameters."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
