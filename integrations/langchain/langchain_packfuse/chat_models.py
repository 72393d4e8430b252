"""The chat model over a pack."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import merge_configs
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_packfuse.fields import PackFuseFields
from langchain_packfuse.messages import Metadata, chunk_of, message_of, turn_of
from langchain_packfuse.structured import parser_for, response_format, with_raw
from packfuse.aio import call, iterate
from packfuse.errors import ConfigError
from packfuse.tools import Reply, Turn
from packfuse.tools.arguments import TURN_ARGUMENTS
from packfuse.tools.tool import Tool, parse_tool_choice

_THREADS = 64
"""Number of threads of `batch`: prompts that wait at the same time form one batch of the pack."""
_FROM_LANGCHAIN = ("ls_structured_output_format", "stream")
"""Arguments of a call that LangChain itself has read."""
_METHODS = ("json_schema", "json_mode", "function_calling")


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

    _further_arguments: ClassVar[tuple[str, ...]] = (
        *PackFuseFields._further_arguments, *TURN_ARGUMENTS, *_FROM_LANGCHAIN, "strict",
    )  # fmt: skip

    streaming: bool | None = None
    """Whether `invoke` streams, so that callbacks get every token."""

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

    def _check(self) -> None:
        self._turn([HumanMessage(".")], None, {})

    def _turn(
        self, messages: list[BaseMessage], stop: list[str] | None, call: dict[str, Any]
    ) -> tuple[Turn, Metadata]:
        """The turn that answers messages, and what the metadata of its answers have."""
        arguments, metadata = self._call(stop, call)
        for name in _FROM_LANGCHAIN:
            arguments.pop(name, None)
        if "strict" in arguments and not {"tools", "response_format"} & arguments.keys():
            msg = "strict is for tools and response formats, and the call has neither"
            raise ConfigError(msg, hint="leave it out")
        arguments.pop("strict", None)  # constrained answers always fit their schema
        return turn_of(self.pack, messages, **arguments), metadata

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn, metadata = self._turn(messages, stop, kwargs)
        return _result(turn.answers(), metadata)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turn, metadata = self._turn(messages, stop, kwargs)
        return _result(await call(turn.answers), metadata)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        calls = itertools.count()
        turn, metadata = self._turn(messages, stop, kwargs)
        # LangChain calls the callbacks for new tokens itself.
        for delta in turn.stream():
            yield ChatGenerationChunk(message=chunk_of(delta, metadata, calls))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        calls = itertools.count()
        turn, metadata = self._turn(messages, stop, kwargs)
        async for delta in iterate(turn.stream):
            yield ChatGenerationChunk(message=chunk_of(delta, metadata, calls))

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
        answers: list[AIMessage] = super().batch(inputs, config, **kwargs)
        return answers

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

        An answer that was cut off is an error, which names the reason why it ended.

        Args:
            schema: A pydantic model, a TypedDict, a JSON schema or an OpenAI tool.
            include_raw: Whether to return `{"raw", "parsed", "parsing_error"}`.
            method: "json_schema" and "json_mode" constrain the whole answer to the schema;
                "function_calling" forces a call.
            strict: For LangChain's interface: all answers fit the schema in either case.
            **kwargs: Settings of the calls.

        Raises:
            ConfigError: for an unknown method or setting.
        """
        if method not in _METHODS:
            raise ConfigError(f"unknown method {method!r}", hint=f"known: {', '.join(_METHODS)}")
        self._arguments(None, kwargs)  # raises for unknown settings
        traced = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            model = self.bind_tools(
                [schema], tool_choice="any", ls_structured_output_format=traced, **kwargs
            )
        else:
            model = self.bind(
                response_format=response_format(schema),
                ls_structured_output_format=traced,
                **kwargs,
            )
        parser = parser_for(schema, calling=method == "function_calling")
        return with_raw(model, parser) if include_raw else model | parser


def _result(replies: Sequence[Reply], metadata: Metadata) -> ChatResult:
    messages = [message_of(reply, metadata) for reply in replies]
    return ChatResult(generations=[ChatGeneration(message=message) for message in messages])
