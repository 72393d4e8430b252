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

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parse an answer.

        Raises:
            OutputParserException: if the answer is not complete, or does not fit the model.
        """
        text = result[0].text
        try:
            data = json.loads(text)
            return data if self.model is None else _validated(self.model, data)
        except ValueError as error:
            reason = _finish_reason(result[0])
            msg = f"the answer is not complete JSON (finish_reason {reason!r}): {error}"
            hint = "raise max_tokens" if reason == "length" else "see the answer"
            raise OutputParserException(f"{msg} ({hint})", llm_output=text) from error


def _validated(model: Any, data: Any) -> Any:
    """An instance of a model of pydantic 2 or 1."""
    return model.model_validate(data) if hasattr(model, "model_validate") else model.parse_obj(data)


def _finish_reason(generation: Generation) -> Any:
    if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
        return generation.message.response_metadata.get("finish_reason")
    return None


def parser_for(schema: dict[str, Any] | type | TypeBaseModel) -> StrictParser:
    """The parser for a schema."""
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    return StrictParser(model=schema if is_model else None)


def with_raw(model: Runnable[Any, Any], parser: StrictParser) -> Runnable[Any, Any]:
    """A runnable that returns the answer, the parsed result, and the error of parsing."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    guarded = parsed.with_fallbacks([failed], exception_key="parsing_error")
    return RunnableMap(raw=model) | guarded
