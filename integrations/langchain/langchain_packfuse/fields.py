"""The fields that the chat model and the LLM share: the pack, and the settings of calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from pydantic import Field

from langchain_packfuse.messages import Metadata, turn_of
from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.generation.request import refuse_several
from packfuse.settings import PackSettings
from packfuse.tools.arguments import as_fields, check_names, merge_arguments
from packfuse.tools.logprobs import take_logprobs

_LOG = logging.getLogger(__name__)
_REMOTE = ("api_key", "max_retries")
"""Fields that LangChain's own tests pass to every chat model; only a remote model needs them."""
_TRACED = ("temperature", "max_tokens", "max_new_tokens")
"""Arguments of a call that are traced in LangSmith."""


def _pack_setting(name: str) -> Any:
    """A field that replaces a setting of the pack; its description is that of `PackSettings`."""
    description = PackSettings.model_fields[name].description
    return Field(default=None, description=f"{description} None: the pack's setting.")


class PackFuseFields(BaseLanguageModel[Any]):
    """The fields that `ChatPackFuse` and `PackFuseLLM` share.

    All but `pack` can be passed to the constructor, bound, made configurable, or passed to a single
    call. The arguments of a call take precedence. So can all arguments of `Pack.generate`, which
    the constructor puts into `model_kwargs`. Unknown names are errors.
    """

    _further_arguments: ClassVar[tuple[str, ...]] = ("logprobs",)
    """Arguments of a call besides those of `Pack.generate`."""

    pack: Any = Field(default=None, exclude=True, repr=False)
    """The `packfuse.Pack`."""
    fusion: Any = _pack_setting("fusion")
    weighting: Any = _pack_setting("weighting")
    weights: dict[str, float] | None = None
    """Fixed weights by member."""
    trace: bool = False
    """Whether the fusion record has an entry for every step."""
    max_tokens: int | None = None
    """Maximum number of tokens of an answer; None for packfuse's default."""
    temperature: float | None = None
    """Sampling temperature; None or 0 for greedy decoding."""
    top_p: float | None = None
    """Nucleus sampling probability."""
    top_k: int | None = None
    """Number of tokens of top-k sampling."""
    min_p: float | None = None
    """Smallest probability of a sampled token, relative to the most probable one."""
    repetition_penalty: float | None = None
    """Penalty on repeated tokens (above 1)."""
    stop: list[str] | str | None = None
    """Stop strings. They end an answer, and are not part of it."""
    seed: int | None = None
    """Random seed."""
    timeout: float | None = None
    """Time in seconds after which generation stops."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Arguments for the members' chat templates."""
    n: int | None = None
    """Number of answers to each prompt, for `generate`; None for one."""
    logprobs: bool | None = None
    """Whether answers have the log-probability of every token, in OpenAI's layout."""
    top_logprobs: int | None = None
    """Number of the most probable tokens that `logprobs` lists at every step."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `Pack.generate`. The constructor takes them by their own names too."""

    def __init__(
        self,
        *,
        pack: Pack | None = None,
        models: Sequence[Any] | None = None,
        pack_file: str | os.PathLike[str] | None = None,
        load_kwargs: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Use a pack, or load one.

        Args:
            pack: A loaded pack.
            models: Hub ids, folders or GGUF files; see `Pack.from_pretrained`.
            pack_file: A YAML file; see `Pack.from_config`.
            load_kwargs: Further arguments of these two: fields of `packfuse.settings.PackSettings`
                and `LoadSettings`, and `progress`.
            **settings: The fields of this class, and all arguments of `Pack.generate`.

        Raises:
            ConfigError: for unknown or unusable settings, or unless exactly one of `pack`, `models`
                and `pack_file` is given.
            LoadError: if a member cannot be loaded.
        """
        fields = self._as_fields(settings)
        pack = Pack.given(pack=pack, models=models, pack_file=pack_file, **(load_kwargs or {}))
        super().__init__(pack=pack, **fields)  # type: ignore[call-arg]
        self._check()

    @classmethod
    def _as_fields(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings as fields; those without a field are in `model_kwargs`.

        Raises:
            ConfigError: for unknown settings, or two values of one setting.
        """
        for name in _REMOTE:
            if settings.pop(name, None) is not None:
                _LOG.warning("%s has no effect: a pack runs in this process", name)
        own = cls.model_fields.keys() - {"pack", "model_kwargs"}
        further = settings.pop("model_kwargs", None) or {}
        fields, rest = as_fields(cls.__name__, (settings, further), own, cls._further_arguments)
        return {**fields, "model_kwargs": rest}

    def _check(self) -> None:
        """Check the settings like a call.

        Raises:
            ConfigError: for settings that no call can have.
        """
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        """The names of the members, joined by "+"."""
        return "+".join(self.pack.names)

    @property
    def _settings(self) -> dict[str, Any]:
        """The fields that are not None."""
        own = PackFuseFields.model_fields.keys() - BaseLanguageModel.model_fields.keys() - {"pack"}
        values = {name: getattr(self, name) for name in sorted(own)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on besides the call; part of the cache key."""
        return {**self.pack.identity, **self._settings}

    def _arguments(self, stop: list[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call, under transformers' names.

        Raises:
            ConfigError: for unknown arguments, or two values of one argument.
        """
        own = {**call, "stop": call.get("stop") if stop is None else stop}
        if own.pop("model", None) is not None:
            msg = "a call cannot change the models of a pack"
            raise ConfigError(msg, hint="make another pack")
        further = own.pop("model_kwargs", None) or {}
        for given in (own, further):
            check_names(f"a call of {type(self).__name__}", given, self._further_arguments)
        settings = self._settings
        defaults = merge_arguments(settings.pop("model_kwargs"), settings)
        return merge_arguments(defaults, merge_arguments(further, own))

    def _call(
        self, stop: list[str] | None, call: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Metadata]:
        """The arguments of one call for a pack, and what its metadata have."""
        arguments = self._arguments(stop, call)
        traced = bool(arguments.get("trace"))
        return arguments, Metadata(self.model_name, traced, take_logprobs(arguments))

    def _one_answer(self, method: str, call: Mapping[str, Any]) -> None:
        """Refuse several answers where a method has room for one.

        Raises:
            ConfigError: naming the method and the argument.
        """
        refuse_several(self._arguments(None, call), f"{type(self).__name__}.{method}")

    def invoke(
        self,
        input: Any,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `Runnable.invoke`; several answers come from `generate` only."""
        self._one_answer("invoke", kwargs)
        return super().invoke(input, config, **kwargs)  # type: ignore[safe-super]

    async def ainvoke(
        self,
        input: Any,  # noqa: A002 (LangChain's name)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """See `Runnable.ainvoke`; several answers come from `agenerate` only."""
        self._one_answer("ainvoke", kwargs)
        return await super().ainvoke(input, config, **kwargs)

    def batch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """See `Runnable.batch`; several answers come from `generate` only."""
        self._one_answer("batch", kwargs)
        return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """See `Runnable.abatch`; several answers come from `agenerate` only."""
        self._one_answer("abatch", kwargs)
        return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """The parameters that are traced in LangSmith."""
        arguments = self._arguments(stop, {k: v for k, v in kwargs.items() if k in _TRACED})
        params = LangSmithParams(
            ls_provider="packfuse",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat" if isinstance(self, BaseChatModel) else "llm",
        )
        if (temperature := arguments.get("temperature")) is not None:
            params["ls_temperature"] = temperature
        if (length := arguments.get("max_new_tokens")) is not None:
            params["ls_max_tokens"] = length
        if stops := arguments.get("stop"):
            params["ls_stop"] = [stops] if isinstance(stops, str) else list(stops)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The token ids of a text, in the vocabulary of the member that needs most room for it."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        ids: list[int] = self.pack.count_ids(text)
        return ids

    def get_num_tokens(self, text: str) -> int:
        """How much of the pack's context window a text takes; see `Pack.count_tokens`."""
        if self.custom_get_token_ids is not None:
            return len(self.custom_get_token_ids(text))
        return int(self.pack.count_tokens(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The same for a chat with its templates and tools."""
        return turn_of(self.pack, messages, tools=tools).prompt_tokens
