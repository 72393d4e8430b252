"""`PackFuse`: the LLM over a pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import (
    messages_to_prompt as default_messages_to_prompt,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.llms.packfuse.fields import PackFuseFields
from llama_index.llms.packfuse.functions import ToolCalling
from llama_index.llms.packfuse.loading import make_pack, plain_models, plain_settings
from llama_index.llms.packfuse.messages import plain_messages, plain_tools
from llama_index.llms.packfuse.responses import (
    PartialChat,
    PartialCompletion,
    chat_response,
    completion_response,
)
from llama_index.llms.packfuse.streams import acloses, aitems, closes, items

from packfuse import Pack
from packfuse.aio import call, iterate
from packfuse.errors import ConfigError
from packfuse.tools import Completion, Turn


class PackFuse(ToolCalling, PackFuseFields):
    """A pack of local language models as one LLM.

    It is both a `CustomLLM` and a `FunctionCallingLLM`; `is_function_calling_model` decides whether
    agents and structured output use tool calls. Every answer has its fusion record in
    `raw["fusion"]` and its token counts in `raw["usage"]`, as plain JSON types. The keyword
    arguments of a call take precedence over the fields: those of `Pack.generate` (`temperature`,
    `stop`, `seed`, `fusion`, `weighting`, `weights`, `trace`, `constraint`, ...), and `max_tokens`.

    Chats are rendered with each member's own template, unless `messages_to_prompt` is given.
    Completions continue the prompt, unless `completion_to_prompt` is given or `chat_completions`
    is set.

    Examples:
        In a checkout of packfuse: `pip install . ./integrations/llama_index`

        ```python
        from llama_index.core import Settings
        from llama_index.llms.packfuse import PackFuse

        llm = PackFuse(models=["org/one-model", "org/another"], weighting="sim")
        Settings.llm, Settings.tokenizer = llm, llm.tokenize

        response = llm.complete("The capital of France is", max_tokens=8)
        print(response.text, response.raw["fusion"]["weights"])
        ```
    """

    def __init__(self, models: Any = None, *, pack: Pack | None = None, **settings: Any) -> None:
        """Use a pack, or load one; exactly one of `pack`, `models` and `pack_file` is needed.

        Args:
            models: Hub ids, folders or GGUF files; see `Pack.from_pretrained`.
            pack: A loaded pack.
            **settings: The fields of this class, those of every LLM (`system_prompt`, ...), and all
                arguments of `Pack.generate`, which are put into `generate_kwargs`.

        Raises:
            ConfigError: for unknown settings, or unless exactly one of the three is given.
            LoadError: if a member cannot be loaded.
        """
        settings = plain_settings(settings, known=type(self).model_fields)
        super().__init__(**settings | {"models": plain_models(models)})
        self._pack = make_pack(pack, models, settings)
        # Raises for settings that no call can have.
        arguments = self._arguments({})
        tools = plain_tools(arguments.pop("tools", ()))
        Turn(self._pack, [{"role": "user", "content": "."}], tools=tools, **arguments)

    @classmethod
    def from_pack(cls, pack: Pack, **settings: Any) -> PackFuse:
        """The same as `PackFuse(pack=pack, ...)`."""
        return cls(pack=pack, **settings)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in LlamaIndex's data."""
        return "PackFuse"

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a prompt."""
        return completion_response(self._completion(prompt, formatted, kwargs).answer())

    @closes
    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Continue a prompt, streamed."""
        return items(self._completion(prompt, formatted, kwargs).stream(), PartialCompletion())

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Continue a prompt without blocking the event loop."""
        return completion_response(
            await call(lambda cancel: self._completion(prompt, formatted, kwargs).answer(cancel))
        )

    @acloses
    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Continue a prompt, streamed, without blocking the event loop."""
        deltas = iterate(lambda cancel: self._completion(prompt, formatted, kwargs).stream(cancel))
        return aitems(deltas, PartialCompletion())

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return chat_response(self._turn(messages, kwargs).answer())

    @closes
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat, streamed."""
        return items(self._turn(messages, kwargs).stream(), PartialChat())

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat without blocking the event loop."""
        return chat_response(await call(lambda cancel: self._turn(messages, kwargs).answer(cancel)))

    @acloses
    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Answer a chat, streamed, without blocking the event loop."""
        deltas = iterate(lambda cancel: self._turn(messages, kwargs).stream(cancel))
        return aitems(deltas, PartialChat())

    def _completion(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> Completion:
        arguments = self._arguments(kwargs)
        if formatted:
            return Completion(self.pack, prompt, **arguments)
        if self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        if self.chat_completions:
            return Turn(self.pack, [{"role": "user", "content": prompt}], **arguments)
        return Completion(self.pack, prompt, **arguments)

    def _turn(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> Completion:
        arguments = self._arguments(kwargs)
        tools = plain_tools(arguments.pop("tools", ()))
        own = self.messages_to_prompt
        if own is None or own is default_messages_to_prompt:
            return Turn(self.pack, plain_messages(messages), tools=tools, **arguments)
        if tools:
            raise ConfigError(
                "messages_to_prompt cannot write tools into the prompt",
                hint="leave it out, or set is_function_calling_model=False",
            )
        for name in ("tool_choice", "parallel_tool_calls"):
            arguments.pop(name, None)
        return Completion(self.pack, own(messages), **arguments)
