"""The fields that the chat model and the LLM share: the pack, and the settings of calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import BaseLanguageModel, LangSmithParams
from langchain_core.messages import BaseMessage
from pydantic import Field

from langchain_packfuse.messages import turn_of
from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.settings import PackSettings
from packfuse.tools.arguments import merge_arguments

_RENAMED = {"timeout": "max_time"}
"""Names of generation arguments in LangChain, and in transformers."""
_IGNORED = ("strict", "ls_structured_output_format")
"""Arguments that LangChain passes to every provider, and that are ignored here."""
_TRACED = ("temperature", "max_tokens", "max_new_tokens")
"""Arguments of a call that are traced in LangSmith."""


def _pack_setting(name: str) -> Any:
    """A field that replaces a setting of the pack; its description is that of `PackSettings`."""
    description = PackSettings.model_fields[name].description
    return Field(default=None, description=f"{description} None: the pack's setting.")


class PackFuseFields(BaseLanguageModel[Any]):
    """The fields that `ChatPackFuse` and `PackFuseLLM` share.

    All but `pack` can be passed to the constructor, bound, made configurable, or passed to a single
    call. The arguments of a call take precedence.
    """

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
    stop: list[str] | None = None
    """Stop strings. They end an answer, and are not part of it."""
    seed: int | None = None
    """Random seed."""
    timeout: float | None = None
    """Time in seconds after which generation stops."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Arguments for the members' chat templates."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of transformers' `generate`."""

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
            **settings: The fields of this class.

        Raises:
            ConfigError: unless exactly one of `pack`, `models` and `pack_file` is given.
            LoadError: if a member cannot be loaded.
        """
        pack = Pack.given(pack=pack, models=models, pack_file=pack_file, **(load_kwargs or {}))
        super().__init__(pack=pack, **settings)  # type: ignore[call-arg]

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
        """The arguments of one call, under packfuse's names."""
        settings, own = self._settings, {**call, "stop": call.get("stop") if stop is None else stop}
        if own.pop("model", None) is not None:
            msg = "a call cannot change the models of a pack"
            raise ConfigError(msg, hint="make another pack")
        further = settings.pop("model_kwargs")
        model_kwargs = own.pop("model_kwargs", further)
        arguments = merge_arguments(merge_arguments(model_kwargs, settings), own)
        return {_RENAMED.get(k, k): v for k, v in arguments.items() if k not in _IGNORED}

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
            params["ls_stop"] = list(stops)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The token ids of a text, in the vocabulary of the member that needs most room for it."""
        ids: list[int] = self.pack.count_ids(text)
        return ids

    def get_num_tokens(self, text: str) -> int:
        """How much of the pack's context window a text takes; see `Pack.count_tokens`."""
        return int(self.pack.count_tokens(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The same for a chat with its templates and tools."""
        return turn_of(self.pack, messages, tools=tools).prompt_tokens
