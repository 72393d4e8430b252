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
from packfuse.errors import ConstraintError, PromptError
from packfuse.text.chat_template import Message
from packfuse.tools.tool import Tool, ToolChoice

CALL, END_CALL = "<tool_call>\n", "\n</tool_call>"
RESULT, END_RESULT = "<tool_response>\n", "\n</tool_response>"

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
_IGNORED = ("tool_use", "tool_call", "invalid_tool_call", "reasoning", "thinking")
"""Types of blocks that are left out: calls are in `tool_calls`; reasoning is for one turn only."""
_ROLES = {"developer": "system", "function": "tool", "human": "user", "ai": "assistant"}


def render(
    messages: Sequence[Mapping[str, Any]], choice: ToolChoice, schema: JsonSchema | None = None
) -> list[Message]:
    """Write tools, calls and results as plain text of system, user and assistant messages.

    Args:
        messages: Messages in OpenAI's format: `content` (text or text blocks), `tool_calls`,
            `tool_call_id`.
        choice: The tools that may be called.
        schema: The schema of the answer; None for none.

    Raises:
        PromptError: for content that is not text.
    """
    names: dict[str, str] = {}
    turns: list[Message] = []
    for number, message in enumerate(messages):
        role = _ROLES.get(str(message.get("role")), message.get("role"))
        text = content_text(message.get("content"), number)
        for call in message.get("tool_calls") or ():
            function = call.get("function", call)
            names[str(call.get("id"))] = str(function["name"])
            arguments = function.get("arguments", {})
            if isinstance(arguments, str):
                arguments = _parse_arguments(arguments)
            text = "\n".join([*([text] if text else []), write_call(function["name"], arguments)])
        if role == "tool":
            name = message.get("name") or names.get(str(message.get("tool_call_id")))
            text = _result(name, text)
            if turns and turns[-1].get("result"):
                turns[-1]["content"] += f"\n{text}"
                continue
            turns.append({"role": "user", "content": text, "result": True})
        else:
            turns.append({"role": role, "content": text})
    instructions = _instructions(choice, schema)
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if not instructions:
        return turns
    if turns and turns[0]["role"] == "system":
        first, *rest = turns
        return [{**first, "content": f"{first['content']}\n\n{instructions}".strip()}, *rest]
    return [{"role": "system", "content": instructions}, *turns]


def write_call(name: str, arguments: Any) -> str:
    """The text of a call."""
    return (
        f"{CALL}{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}{END_CALL}"
    )


def content_text(content: Any, number: int) -> str:
    """The text of a message's content.

    Args:
        content: Text, a list of blocks, or None.
        number: Index of the message, for errors.

    Raises:
        PromptError: for images and other blocks that are not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    parts = []
    for block in content if isinstance(content, Sequence) else [content]:
        if isinstance(block, str):
            parts.append(block)
        elif isinstance(block, Mapping) and isinstance(block.get("text"), str):
            parts.append(block["text"])
        elif not (isinstance(block, Mapping) and block.get("type") in _IGNORED):
            kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
            raise PromptError(
                f"message {number} has a block of type {kind!r}", hint="a pack reads text only"
            )
    return "".join(parts)


class CallGrammar(Grammar):
    """The constraint on an answer with tools.

    Attributes:
        left_out: What decoding does not enforce, as notes.
    """

    left_out: tuple[str, ...] = ()

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
    return CallGrammar(lark).model_copy(update={"left_out": tuple(notes)})


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


def _result(name: str | None, text: str) -> str:
    if name:
        text = json.dumps({"name": name, "content": text}, ensure_ascii=False)
    return f"{RESULT}{text}{END_RESULT}"


def _instructions(choice: ToolChoice, schema: JsonSchema | None) -> str:
    parts = []
    if choice.tools:
        parts.append(_OFFER.format(tools="\n".join(tool.to_json() for tool in choice.tools)))
        if choice.mode == "any":
            names = " or ".join(tool.name for tool in choice.tools)
            parts.append(_MUST.format(which=names))
    if schema is not None:
        plain = json.dumps(schema.schema_, ensure_ascii=False)
        parts.append(_SCHEMA.format(schema=plain))
    return "\n\n".join(parts)


def _parse_arguments(arguments: str) -> Any:
    """Parse arguments as JSON; other text stays text."""
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments
