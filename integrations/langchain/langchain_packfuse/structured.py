"""Structured answers: response formats from schemas, and a parser."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseGenerationOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import TypeBaseModel, is_basemodel_subclass


def response_format(schema: dict[str, Any] | type) -> dict[str, Any]:
    """The response format in OpenAI's form, for a schema in any of LangChain's forms."""
    function = convert_to_openai_tool(schema)["function"]
    inner = {"name": function["name"], "schema": function["parameters"]}
    return {"type": "json_schema", "json_schema": inner}


class StrictParser(BaseGenerationOutputParser[Any]):
    """Parses an answer as JSON. An incomplete answer is an error; it is not repaired."""

    model: Any = None
    """A pydantic model of the result; None for plain data."""
    calling: bool = False
    """Whether the result is the arguments of a tool call, instead of the text."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        Raises:
            OutputParserException: if the answer is not complete, or does not fit the model.
        """
        answer = result[0]
        data = _call_arguments(answer) if self.calling else _json(answer)
        if self.model is None:
            return data
        try:
            return _validated(self.model, data)
        except ValueError as error:
            name = getattr(self.model, "__name__", self.model)
            msg = f"the answer does not fit {name}: {error}"
            raise OutputParserException(msg, llm_output=json.dumps(data)) from error


def _json(answer: Generation) -> Any:
    """The text of an answer as data."""
    try:
        return json.loads(answer.text)
    except ValueError as error:
        raise _incomplete("complete JSON", str(error), answer, answer.text) from error


def _call_arguments(answer: Generation) -> Any:
    """The arguments of the first call of an answer."""
    message = answer.message if isinstance(answer, ChatGeneration) else None
    if not isinstance(message, AIMessage):
        raise _incomplete("a message with a tool call", "it is text", answer, answer.text)
    if message.tool_calls:
        return message.tool_calls[0]["args"]
    errors = message.response_metadata.get("invalid_tool_call_errors")
    problem = "; ".join(errors) if errors else f"it is {message.text!r}"
    begun = "".join(str(call["args"]) for call in message.invalid_tool_calls)
    raise _incomplete("a complete tool call", problem, answer, begun or message.text)


def _incomplete(wanted: str, problem: str, answer: Generation, text: str) -> OutputParserException:
    """The error for an answer that is not as wanted."""
    reason = _finish_reason(answer)
    msg = f"the answer is not {wanted} (finish_reason {reason!r}): {problem}"
    hint = "raise max_tokens" if reason == "length" else "see the answer"
    return OutputParserException(f"{msg} ({hint})", llm_output=text)


def _validated(model: Any, data: Any) -> Any:
    """An instance of a model of pydantic 2 or 1."""
    return model.model_validate(data) if hasattr(model, "model_validate") else model.parse_obj(data)


def _finish_reason(generation: Generation) -> Any:
    if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
        return generation.message.response_metadata.get("finish_reason")
    return None


def parser_for(
    schema: dict[str, Any] | type | TypeBaseModel, *, calling: bool = False
) -> StrictParser:
    """The parser for a schema; with `calling`, the answer is a tool call."""
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    return StrictParser(model=schema if is_model else None, calling=calling)


def with_raw(model: Runnable[Any, Any], parser: StrictParser) -> Runnable[Any, Any]:
    """A runnable that returns the answer, the parsed result, and the error of parsing."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    guarded = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return RunnableMap(raw=model) | guarded
