"""The chat model over a pack."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_packfuse.fields import PackFuseFields
from langchain_packfuse.messages import chunks_of, message_of, turn_of
from langchain_packfuse.structured import parser_for, response_format, with_raw
from packfuse.aio import call, iterate
from packfuse.tools import Reply, Turn
from packfuse.tools.tool import Tool, parse_tool_choice

_THREADS = 64
"""Number of threads of `batch`: prompts that wait at the same time form one batch of the pack."""


class ChatPackFuse(PackFuseFields, BaseChatModel):
    """A pack of local language models as one chat model.

    Every answer has its fusion record in `response_metadata["fusion"]`: the members' weights, their
    prompt losses, and more. It can be called from many threads and tasks; calls that wait for the
    pack at the same time are answered as one batch.

    Example:
        >>> from packfuse import Pack
        >>> model = ChatPackFuse(pack=Pack.starter(), max_tokens=32)  # doctest: +SKIP
        >>> answer = model.invoke("What is the capital of France?")  # doctest: +SKIP
        >>> answer.response_metadata["fusion"]["weights"]  # doctest: +SKIP
        {'SmolLM2-135M-Instruct': 0.46, 'gemma-3-270m': 0.54}
    """

    @property
    def _llm_type(self) -> str:
        return "packfuse-chat"

    def _resolve_model_profile(self) -> ModelProfile | None:
        return ModelProfile(
            name=self.model_name,
            max_input_tokens=self.pack.context_window,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
            open_weights=True,
        )

    def _turn(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> Turn:
        return turn_of(self.pack, messages, **self._arguments(stop, call))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(self._turn(messages, stop, kwargs).answer())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._result(await call(self._turn(messages, stop, kwargs).answer))

    def _result(self, reply: Reply) -> ChatResult:
        message = message_of(reply, self.model_name)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        calls = itertools.count()
        # LangChain calls the callbacks for new tokens itself.
        for delta in self._turn(messages, stop, kwargs).stream():
            yield ChatGenerationChunk(message=chunks_of(delta, self.model_name, calls))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        calls = itertools.count()
        async for delta in iterate(self._turn(messages, stop, kwargs).stream):
            yield ChatGenerationChunk(message=chunks_of(delta, self.model_name, calls))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer many chats in few large batches, unless `max_concurrency` is set."""
        defaults = RunnableConfig(max_concurrency=min(_THREADS, max(1, len(inputs))))
        if isinstance(config, list):
            config = [merge_configs(defaults, each) for each in config]
        else:
            config = merge_configs(defaults, config)
        return super().batch(inputs, config, **kwargs)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Bind tools that the model may call.

        Args:
            tools: Anything that LangChain can convert to a tool.
            tool_choice: "auto", "any" (or "required", True), "none", or the name of a tool. A
                forced call is constrained, so that it is always valid.
            parallel_tool_calls: Whether an answer may have several calls. By default, a free answer
                may, and a forced answer has one call.
            **kwargs: Settings of the calls.

        Raises:
            ConfigError: for an unknown tool.
        """
        plain = [convert_to_openai_tool(tool) for tool in tools]
        parse_tool_choice(tool_choice, [Tool.parse(tool) for tool in plain], parallel_tool_calls)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=plain, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Constrain answers to a schema, and parse them.

        Args:
            schema: A pydantic model, a TypedDict, a JSON schema or an OpenAI tool.
            include_raw: Whether to return `{"raw", "parsed", "parsing_error"}`.
            method: "json_schema" and "json_mode" constrain the whole answer to the schema;
                "function_calling" forces a call.
            strict: Ignored: all answers fit the schema.
            **kwargs: Settings of the calls.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        model = self.bind(
            response_format=response_format(schema),
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
            **kwargs,
        )
        parser = parser_for(schema)
        return with_raw(model, parser) if include_raw else model | parser
