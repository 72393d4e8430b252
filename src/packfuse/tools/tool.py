"""Tools that an answer may call, and how freely."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from packfuse.constraint import JsonSchema
from packfuse.errors import ConfigError, ConstraintError


class Tool(BaseModel):
    """A function that an answer may call.

    Attributes:
        name: What calls it.
        description: What it does, for the model.
        parameters: JSON schema of its arguments, an object.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})

    @classmethod
    def read(cls, given: Any) -> Tool:
        """A tool from OpenAI's form, `{"type": "function", "function": {...}}`, or its inner part.

        Raises:
            ConfigError: for anything else.
            ConstraintError: if the parameters cannot be kept to.
        """
        inner = given.get("function", given) if isinstance(given, Mapping) else given
        try:
            tool = cls.model_validate(inner)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(
                f"{given!r} is not a tool: {reason}",
                hint='write {"type": "function", "function": {"name": ..., "parameters": {...}}}',
            ) from error
        try:
            tool.schema_of_arguments.check()
        except ConstraintError as error:
            raise ConstraintError(
                f"tool {tool.name!r}: {error.message}", hint=error.hint
            ) from error
        return tool

    @property
    def schema_of_arguments(self) -> JsonSchema:
        """What its arguments are held to; an object, even if the schema does not say so."""
        return JsonSchema({"type": "object", "properties": {}, **self.parameters})

    def described(self) -> str:
        """One line of JSON for the model."""
        return json.dumps(self.model_dump(), ensure_ascii=False)


class ToolChoice(NamedTuple):
    """Which tools may be called, and whether one must be.

    Attributes:
        mode: "auto" leaves it to the model, "any" forces a call, "none" allows none.
        tools: Those that may be called.
        several: Whether one answer may hold several calls.
    """

    mode: Literal["auto", "any", "none"]
    tools: tuple[Tool, ...]
    several: bool


def read_tools(given: Iterable[Any] | None) -> tuple[Tool, ...]:
    """Tools, each name once; one that is given twice counts once.

    Raises:
        ConfigError: for two tools of one name that take different arguments.
    """
    tools: dict[str, Tool] = {}
    for tool in map(Tool.read, given or ()):
        if tools.setdefault(tool.name, tool).parameters != tool.parameters:
            raise ConfigError(f"two tools are called {tool.name!r}", hint="rename one of them")
    return tuple(tools.values())


def choose(given: Any, tools: Sequence[Tool], parallel: bool | None = None) -> ToolChoice:
    """What a `tool_choice` means.

    Args:
        given: "auto" (or None), "any" (or "required", True), "none" (or False), a tool's name, or
            `{"type": "function", "function": {"name": ...}}`.
        tools: The tools on offer.
        parallel: Whether an answer may hold several calls; None lets a free answer do so and takes
            one call where a call is forced.

    Raises:
        ConfigError: for a tool that is not on offer, or a forced call without tools.
    """
    if isinstance(given, Mapping):
        kind = given.get("type", "")
        given = given.get("function", given).get("name", kind)
    modes: dict[Any, Literal["auto", "any", "none"]] = {
        None: "auto", "auto": "auto", "any": "any", "required": "any", True: "any",
        "none": "none", False: "none",
    }  # fmt: skip
    named = [tool for tool in tools if tool.name == given]
    if named:
        return ToolChoice("any", tuple(named), bool(parallel))
    if given not in modes:
        known = ", ".join(["auto", "any", "none", *(tool.name for tool in tools)])
        raise ConfigError(f"no tool is called {given!r}", hint=f"tool_choice: {known}")
    mode = modes[given]
    if mode == "any" and not tools:
        raise ConfigError("a call is forced, and there are no tools", hint="pass tools")
    if not tools:
        mode = "none"
    several = parallel if parallel is not None else mode == "auto"
    return ToolChoice(mode, tuple(tools) if mode != "none" else (), several)
