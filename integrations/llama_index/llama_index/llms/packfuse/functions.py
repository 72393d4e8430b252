"""Tool calls and structured output: the methods of LlamaIndex's function-calling LLMs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.program.utils import get_program_for_llm, process_streaming_objects
from llama_index.core.tools import BaseTool
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.packfuse.messages import plain_tools

_CALLING = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)


class ToolCalling(FunctionCallingLLM):
    """Tool calls of `PackFuse`. Calls are written, forced and parsed by `packfuse.tools`."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if isinstance(user_msg, str):
            user_msg = ChatMessage(user_msg, role=MessageRole.USER)
        if user_msg is not None:
            messages.append(user_msg)
        if tool_choice is None and tool_required:
            tool_choice = "required"
        return {
            "messages": messages,
            "tools": plain_tools(tools),
            "tool_choice": tool_choice,
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **_: Any
    ) -> list[ToolSelection]:
        """The complete calls of an answer.

        Args:
            response: The result of `chat_with_tools`, or an item of its stream.
            error_on_no_tool_call: Whether an answer without a call is an error.

        Raises:
            ValueError: for an answer without a call, if that is an error.
        """
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not blocks and error_on_no_tool_call:
            raise ValueError(_without_call(response))
        return [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=cast("dict[str, Any]", block.tool_kwargs),
            )
            for block in blocks
        ]

    def _structured_stream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> Generator[Any, None, None]:
        if not self._calls_for_structure:
            program = self._program(output_cls, prompt)
            yield from program.stream_call(llm_kwargs=llm_kwargs, **prompt_args)
            return
        objects = PartialObjects(self, output_cls)
        arguments = self._forced(output_cls, prompt, llm_kwargs, prompt_args)
        for response in self.stream_chat_with_tools(**arguments):
            yield objects.add(response)
        objects.check()

    async def _structured_astream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        if not self._calls_for_structure:
            program = self._program(output_cls, prompt)
            stream: AsyncGenerator[Any, None] = await program.astream_call(
                llm_kwargs=llm_kwargs, **prompt_args
            )
            return stream
        objects = PartialObjects(self, output_cls)
        arguments = self._forced(output_cls, prompt, llm_kwargs, prompt_args)
        responses = await self.astream_chat_with_tools(**arguments)

        async def read() -> AsyncGenerator[Any, None]:
            async for response in responses:
                yield objects.add(response)
            objects.check()

        return read()

    @property
    def _calls_for_structure(self) -> bool:
        """Whether structured output uses tool calls."""
        return self.pydantic_program_mode in _CALLING and self.metadata.is_function_calling_model

    def _program(self, output_cls: Any, prompt: Any) -> Any:
        """LlamaIndex's program for structured output as text."""
        mode = self.pydantic_program_mode
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode)

    def _forced(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any, prompt_args: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of `stream_chat_with_tools` for a forced call with the fields of a model.

        LlamaIndex's own program does not force the call when it streams.
        """
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        forced = {"chat_history": messages, "tool_choice": "required"}
        return {**(llm_kwargs or {}), "tools": [get_function_tool(output_cls)], **forced}


class PartialObjects:
    """Makes the objects of a structured stream from its responses."""

    def __init__(self, llm: FunctionCallingLLM, output_cls: Any) -> None:
        """Start without a response."""
        self._llm, self._output_cls = llm, output_cls
        self._objects: Any = None
        self._last: ChatResponse | None = None

    def add(self, response: ChatResponse) -> Any:
        """The object so far, which is empty until the call is complete."""
        self._last = response
        found = process_streaming_objects(
            response, self._output_cls, cur_objects=self._objects, llm=self._llm
        )
        self._objects = found if isinstance(found, list) else [found]
        return found

    def check(self) -> None:
        """Check that the stream ended with a complete call.

        Raises:
            ValueError: if it did not; the message names the reason why the answer ended.
        """
        if self._last is not None:
            self._llm.get_tool_calls_from_response(self._last)


def _without_call(response: ChatResponse) -> str:
    """Why an answer has no complete call, and what to do."""
    broken = response.message.additional_kwargs.get("invalid_tool_calls")
    problem = broken[0]["error"] if broken else f"the answer is {response.message.content!r}"
    reason = response.additional_kwargs.get("finish_reason")
    hint = "pass tool_required=True to force a call"
    if broken:
        cut = reason == "length"
        hint = "raise max_new_tokens" if cut else "see invalid_tool_calls of the message"
    return f"the answer has no tool call (finish_reason {reason!r}): {problem} ({hint})"
