"""Tool calls and structured output: the methods of LlamaIndex's function-calling LLMs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import get_program_for_llm
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
            broken = response.message.additional_kwargs.get("invalid_tool_calls")
            reason = broken[0]["error"] if broken else f"the answer is {response.message.content!r}"
            hint = "raise max_new_tokens" if broken else "pass tool_required=True to force a call"
            raise ValueError(f"the answer has no tool call: {reason} ({hint})")
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
        program = self._program(output_cls, prompt)
        yield from program.stream_call(llm_kwargs=llm_kwargs, **prompt_args)

    async def _structured_astream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
    ) -> AsyncGenerator[Any, None]:
        program = self._program(output_cls, prompt)
        stream: AsyncGenerator[Any, None] = await program.astream_call(
            llm_kwargs=llm_kwargs, **prompt_args
        )
        return stream

    def _program(self, output_cls: Any, prompt: Any) -> Any:
        """The program of a structured stream, with a forced call (not so in LlamaIndex itself)."""
        mode = self.pydantic_program_mode
        calling = mode in _CALLING and self.metadata.is_function_calling_model
        forced = {"tool_choice": "required"} if calling else {}
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode, **forced)
