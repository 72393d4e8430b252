"""The text-completion model over a pack."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable

from langchain_packfuse.fields import PackFuseFields
from langchain_packfuse.messages import Metadata
from packfuse.aio import call, iterate
from packfuse.tools import Completion, Reply, ReplyDelta, complete


class PackFuseLLM(PackFuseFields, BaseLLM):
    """A pack of local language models as one text-completion model.

    Every generation has its fusion record in `generation_info["fusion"]`.

    Example:
        >>> from packfuse import Pack
        >>> llm = PackFuseLLM(pack=Pack.starter(), max_tokens=8)  # doctest: +SKIP
        >>> llm.invoke("The capital of France is")  # doctest: +SKIP
        ' Paris.'
    """

    @property
    def _llm_type(self) -> str:
        return "packfuse"

    def _check(self) -> None:
        arguments, _ = self._call(None, {})
        Completion(self.pack, ".", **arguments)

    def generate(
        self, prompts: list[str], stop: Any = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """See `BaseLLM.generate`; the settings of the call are part of its cache key."""
        bound, rest = self._bound(kwargs)
        return super(PackFuseLLM, bound).generate(prompts, stop, *args, **rest)

    async def agenerate(
        self, prompts: list[str], stop: Any = None, *args: Any, **kwargs: Any
    ) -> LLMResult:
        """See `BaseLLM.agenerate`; the settings of the call are part of its cache key."""
        bound, rest = self._bound(kwargs)
        return await super(PackFuseLLM, bound).agenerate(prompts, stop, *args, **rest)

    def batch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """See `Runnable.batch`; with `return_exceptions`, a prompt that fails fails alone."""
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        self._one_answer("batch", kwargs)
        # `BaseLLM.batch` would give one error to all prompts. These calls run together as well.
        return Runnable.batch(self, inputs, config, return_exceptions=True, **kwargs)

    async def abatch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """See `Runnable.abatch`; with `return_exceptions`, a prompt that fails fails alone."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        self._one_answer("abatch", kwargs)
        return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)

    def _bound(self, kwargs: dict[str, Any]) -> tuple[PackFuseLLM, dict[str, Any]]:
        """A copy with the settings of a call, and the arguments that are not settings."""
        own = {"callbacks", "tags", "metadata", "run_name", "run_id"}
        settings = {k: v for k, v in kwargs.items() if k not in own}
        rest = {k: v for k, v in kwargs.items() if k in own}
        if not settings:
            return self, rest
        unset = dict.fromkeys(self._settings)
        arguments = self._arguments(None, settings)
        return self.model_copy(update={**unset, "model_kwargs": arguments}), rest

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return self._run(prompts, stop, kwargs, None)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return await call(partial(self._run, prompts, stop, kwargs))

    def _run(
        self,
        prompts: list[str],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        cancel: threading.Event | None,
    ) -> LLMResult:
        arguments, metadata = self._call(stop, kwargs)
        replies = complete(self.pack, prompts, cancel, **arguments)
        each = len(replies) // len(prompts)
        generations = [
            [_generation(reply, metadata) for reply in replies[start : start + each]]
            for start in range(0, len(replies), each)
        ]
        usage = {key: sum(r.usage[key] for r in replies) for key in replies[0].usage}
        # A prompt counts once, however many answers it has.
        usage["prompt_tokens"] //= each
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        output = {"model_name": self.model_name, "token_usage": usage}
        return LLMResult(generations=generations, llm_output=output)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        arguments, metadata = self._call(stop, kwargs)
        completion = Completion(self.pack, prompt, **arguments)
        for delta in completion.stream():
            chunk = _chunk(delta, metadata)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        arguments, metadata = self._call(stop, kwargs)
        completion = Completion(self.pack, prompt, **arguments)
        async for delta in iterate(completion.stream):
            chunk = _chunk(delta, metadata)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _generation(reply: Reply, metadata: Metadata) -> Generation:
    info = {**metadata.info(reply), **metadata.steps(reply.record.trace)}
    return Generation(text=reply.text, generation_info=info)


def _chunk(delta: ReplyDelta, metadata: Metadata) -> GenerationChunk:
    info = metadata.info(delta.reply) if delta.reply else {}
    info |= metadata.steps(delta.trace)
    return GenerationChunk(text=delta.text, generation_info=info or None)
