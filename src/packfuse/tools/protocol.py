"""One text format of tools, calls and results for all members.

The chat templates of model families have different formats for tools. With these, the members would
predict different formats, and their distributions could not be fused well. So all members read and
generate the same plain text: calls as JSON between `<tool_call>` tags, the format of the Hermes
models, and results between `<tool_response>` tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from packfuse.constraint import Constraint, Grammar, JsonSchema
from packfuse.errors import ConstraintError
from packfuse.text.chats.messages import normalize_messages
from packfuse.text.chats.tool_text import CALL, END_CALL, WrittenMessage, to_json, write_messages
from packfuse.tools.tool import Tool, ToolChoice

_OFFER = """You can use these tools, one JSON description a line:
<tools>
{tools}
</tools>
To use a tool, write its name and its arguments as JSON between tags, and nothing after that:
<tool_call>
{{"name": "name of the tool", "arguments": {{"argument": "value"}}}}
</tool_call>"""
_MUST = "You must use {which} now."
_SCHEMA = "Answer with JSON that fits this schema, and nothing else:\n{schema}"


def render(
    messages: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    schema: JsonSchema | None = None,
    *,
    continued: bool = False,
) -> list[WrittenMessage]:
    """Write tools, calls and results as plain text of system, user and assistant messages.

    Args:
        messages: Messages in OpenAI's format: `content` (text or text blocks), `tool_calls`,
            `tool_call_id`.
        choice: The tools that may be called.
        schema: The schema of the answer; None for none.
        continued: Whether the answer continues the last message, which then stays as it is.

    Raises:
        PromptError: for malformed messages, and content that is not text.
    """
    checked = normalize_messages(messages)
    turns = write_messages(checked)
    if continued and checked[-1]["role"] == "assistant" and not checked[-1].get("tool_calls"):
        turns[-1]["content"] = checked[-1]["content"]
    instructions = _instructions(choice, schema)
    if not instructions:
        return turns
    if turns[0]["role"] == "system":
        first, *rest = turns
        content = "\n\n".join(filter(None, (first["content"], instructions)))
        return [WrittenMessage(role="system", content=content), *rest]
    return [WrittenMessage(role="system", content=instructions), *turns]


class CallGrammar(Grammar):
    """The constraint on an answer with tools.

    Attributes:
        left_out: What decoding does not enforce, as notes.
    """

    left_out: tuple[str, ...] = ()

    def __init__(self, lark: str, left_out: Sequence[str] = ()) -> None:
        """The grammar and its notes."""
        Constraint.__init__(self, lark=lark, left_out=tuple(left_out))  # type: ignore[call-arg]

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Constraint.notes`."""
        return self.left_out


def constraint_of(choice: ToolChoice) -> Constraint | None:
    """The constraint on an answer with tools; None without tools.

    A forced answer is a call. Any other answer is free text, in which a call that has begun must be
    completed as a valid call.

    A tool whose schema cannot be a constraint does not keep the others from being used: its own
    arguments are free, and a call of it is invalid.

    Raises:
        ConstraintError: if a call is forced, and no tool can be called.
    """
    if choice.mode == "none":
        return None
    errors = {tool.name: error for tool in choice.tools if (error := _error(tool))}
    if choice.mode == "any" and len(errors) == len(choice.tools):
        raise next(iter(errors.values()))
    notes = [note for tool in choice.tools for note in _notes(tool, errors.get(tool.name))]
    calls = " | ".join(f"call_{index}" for index in range(len(choice.tools)))
    more = f"({_quoted(chr(10) + CALL)} body)*" if choice.several else ""
    if choice.mode == "any":
        start = f"start: {_quoted(CALL)} body {more}"
    else:
        tag, rest = CALL[:-1], CALL[-1:]
        start = (
            f"start: TEXT | head {_quoted(rest)} body {more}\n"
            f"head[lazy]: TEXT {_quoted(tag)}\n"
            "TEXT: /(.|\\n)*/"
        )
    bodies = [_body(k, tool, free=tool.name in errors) for k, tool in enumerate(choice.tools)]
    lark = "\n".join(["%llguidance {}", start, f"body: {calls}", *bodies])
    return CallGrammar(lark, notes)


def _error(tool: Tool) -> ConstraintError | None:
    """Why calls of a tool cannot be constrained; None if they can."""
    try:
        tool.check()
    except ConstraintError as error:
        return error
    return None


def _notes(tool: Tool, error: ConstraintError | None) -> list[str]:
    if error is not None:
        return [str(error)]
    return [f"tool {tool.name!r}: {note}" for note in tool.arguments_schema.notes]


def _body(index: int, tool: Tool, *, free: bool) -> str:
    """The grammar rules for the JSON of a call of one tool, whose arguments may be free."""
    opening = _quoted(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ')
    arguments = JsonSchema({"type": "object"}) if free else tool.arguments_schema
    schema = json.dumps(arguments.laid_out(), ensure_ascii=False)
    call = f"call_{index}: {opening} args_{index} {_quoted('}' + END_CALL)}"
    return f"{call}\nargs_{index}: %json {schema}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _instructions(choice: ToolChoice, schema: JsonSchema | None) -> str:
    parts = []
    if choice.tools:
        parts.append(_OFFER.format(tools="\n".join(tool.to_json() for tool in choice.tools)))
        if choice.mode == "any":
            names = " or ".join(tool.name for tool in choice.tools)
            parts.append(_MUST.format(which=names))
    if schema is not None:
        parts.append(_SCHEMA.format(schema=to_json(schema.schema_)))
    return "\n\n".join(parts)
