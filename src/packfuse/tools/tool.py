"""Tools that an answer may call, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from packfuse.constraint import JsonSchema
from packfuse.constraint.json_schema import problem
from packfuse.errors import ConfigError, ConstraintError
from packfuse.text.chats.tool_text import to_json


class Tool(BaseModel):
    """A function that an answer may call.

    Attributes:
        name: The name of the function.
        description: What the function does, for the model.
        parameters: JSON schema of the arguments, which are an object.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})

    @classmethod
    def parse(cls, given: Any) -> Tool:
        """Parse a tool in OpenAI's format: `{"type": "function", "function": {...}}`.

        The inner part alone is accepted as well.

        Raises:
            ConfigError: for anything else.
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
        return tool

    @property
    def arguments_schema(self) -> JsonSchema:
        """The constraint on the arguments: an object, even if the schema has no type."""
        return JsonSchema({"type": "object", "properties": {}, **self.parameters})

    def check(self) -> None:
        """Check that calls of the tool can be constrained; unsupported keywords are left out.

        Raises:
            ConstraintError: naming the tool, and what is wrong with its schema.
        """
        try:
            self.arguments_schema.check()
        except ConstraintError as error:
            raise ConstraintError(
                f"tool {self.name!r}: {error.message}", hint=error.hint
            ) from error

    def problem(self, arguments: dict[str, Any]) -> str | None:
        """What is wrong with arguments that decoding did not see to; None if nothing is."""
        try:
            if not self.arguments_schema.omissions:
                return None
        except ConstraintError as error:
            return f"tool {self.name!r} cannot be called: {error}"
        found = problem(self.arguments_schema.schema_, arguments)
        return found and f"the arguments of {self.name!r} do not fit its schema: {found}"

    def to_json(self) -> str:
        """The description of the tool for the model, as one line of JSON."""
        return to_json(self.model_dump())


class ToolChoice(NamedTuple):
    """Which tools may be called, and whether one must be.

    Attributes:
        mode: "auto": the answer may have calls; "any": it must be a call; "none": it has no calls.
        tools: The tools that may be called.
        several: Whether one answer may have several calls.
    """

    mode: Literal["auto", "any", "none"]
    tools: tuple[Tool, ...]
    several: bool

    def problem(self, name: str, arguments: dict[str, Any]) -> str | None:
        """What is wrong with a call, beyond its form; None if nothing is."""
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            known = ", ".join(tool.name for tool in self.tools)
            return f"no tool is called {name!r} (tools: {known or 'none'})"
        return tool.problem(arguments)


def parse_tools(given: Iterable[Any] | None) -> tuple[Tool, ...]:
    """Tools with distinct names; a tool that occurs twice is used once.

    Raises:
        ConfigError: for two tools with the same name and different parameters.
    """
    tools: dict[str, Tool] = {}
    for tool in map(Tool.parse, given or ()):
        if tools.setdefault(tool.name, tool).parameters != tool.parameters:
            raise ConfigError(f"two tools are called {tool.name!r}", hint="rename one of them")
    return tuple(tools.values())


def parse_tool_choice(
    given: Any, tools: Sequence[Tool], parallel: bool | None = None
) -> ToolChoice:
    """Parse a `tool_choice` in the format of OpenAI or LangChain.

    Args:
        given: "auto" (or None), "any" (or "required", True), "none" (or False), a tool's name, or
            `{"type": "function", "function": {"name": ...}}`.
        tools: All tools.
        parallel: Whether an answer may have several calls; None: several in mode "auto", one in
            mode "any".

    Raises:
        ConfigError: for an unknown tool, or a forced call without tools.
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
