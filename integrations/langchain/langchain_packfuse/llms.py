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

from langchain_packfuse.fields import PackFuseFields
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
        replies = complete(self.pack, prompts, cancel, **self._arguments(stop, kwargs))
        generations = [[Generation(text=r.text, generation_info=_info(r))] for r in replies]
        usage = {key: sum(r.usage[key] for r in replies) for key in replies[0].usage}
        output = {"model_name": self.model_name, "token_usage": usage}
        return LLMResult(generations=generations, llm_output=output)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        completion = Completion(self.pack, prompt, **self._arguments(stop, kwargs))
        for delta in completion.stream():
            chunk = _chunk(delta)
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
        completion = Completion(self.pack, prompt, **self._arguments(stop, kwargs))
        async for delta in iterate(completion.stream):
            chunk = _chunk(delta)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _info(reply: Reply) -> dict[str, Any]:
    return {"finish_reason": reply.finish_reason, "fusion": reply.fusion}


def _chunk(delta: ReplyDelta) -> GenerationChunk:
    info = _info(delta.reply) if delta.reply else None
    return GenerationChunk(text=delta.text, generation_info=info)
