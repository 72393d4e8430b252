"""What both classes are configured by: a pack, and how to ask it."""

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
from packfuse.tools.arguments import merged

_RENAMED = {"timeout": "max_time"}
"""LangChain's names of generation arguments, and transformers'."""
_FOREIGN = ("strict", "ls_structured_output_format")
"""What LangChain hands to every provider, and nothing here can use."""
_TRACED = ("temperature", "max_tokens", "max_new_tokens")
"""Arguments of a call that LangSmith shows."""


class PackSettings(BaseLanguageModel[Any]):
    """The fields that `ChatPackFuse` and `PackFuseLLM` share.

    All of them can be given to the constructor, bound, made configurable, or passed to a single
    call, where they count before the others.
    """

    pack: Any = Field(default=None, exclude=True, repr=False)
    """The `packfuse.Pack` that answers."""
    fusion: Any = None
    """Fusion rule; None for the pack's own."""
    weighting: Any = None
    """Weighting; None for the pack's own."""
    weights: dict[str, float] | None = None
    """Fixed weights by member."""
    trace: bool = False
    """Record every step in the fusion record."""
    max_tokens: int | None = None
    """Most tokens of an answer; None for packfuse's default."""
    temperature: float | None = None
    """Sampling temperature; None or 0 for greedy decoding."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: list[str] | None = None
    """Strings that end an answer, and are not part of it."""
    seed: int | None = None
    """Seed of the random numbers."""
    timeout: float | None = None
    """Seconds after which an answer ends where it is."""
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
        """Bind a pack, or load one.

        Args:
            pack: A pack that is loaded already.
            models: Hub ids, folders or GGUF files; see `Pack.from_pretrained`.
            pack_file: A YAML file; see `Pack.from_config`.
            load_kwargs: For loading: `alignment`, `reference`, `dtype`, `device_map`, ...
            **settings: The fields of this class.

        Raises:
            ConfigError: unless exactly one of `pack`, `models` and `pack_file` is given.
            LoadError: if a member cannot be loaded.
        """
        pack = Pack.given(pack=pack, models=models, pack_file=pack_file, **(load_kwargs or {}))
        super().__init__(pack=pack, **settings)  # type: ignore[call-arg]

    @property
    def model_name(self) -> str:
        """The members' names."""
        return "+".join(self.pack.names)

    @property
    def _settings(self) -> dict[str, Any]:
        """The fields that are set; a temperature or a seed of 0 is."""
        own = PackSettings.model_fields.keys() - BaseLanguageModel.model_fields.keys() - {"pack"}
        values = {name: getattr(self, name) for name in sorted(own)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on; part of the cache key."""
        return {**self.pack.identity, **self._settings}

    def _arguments(self, stop: list[str] | None, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call, under packfuse's names."""
        settings, own = self._settings, {**call, "stop": call.get("stop") if stop is None else stop}
        if own.pop("model", None) is not None:
            msg = "a call cannot change the models of a pack"
            raise ConfigError(msg, hint="make another pack")
        further = settings.pop("model_kwargs")
        arguments = merged(merged(own.pop("model_kwargs", further), settings), own)
        return {_RENAMED.get(k, k): v for k, v in arguments.items() if k not in _FOREIGN}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """What LangSmith shows."""
        arguments = self._arguments(stop, {k: v for k, v in kwargs.items() if k in _TRACED})
        params = LangSmithParams(
            ls_provider="packfuse",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat" if isinstance(self, BaseChatModel) else "llm",
        )
        if (temperature := arguments.get("temperature")) is not None:
            params["ls_temperature"] = temperature
        if (most := arguments.get("max_new_tokens")) is not None:
            params["ls_max_tokens"] = most
        if stops := arguments.get("stop"):
            params["ls_stop"] = list(stops)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of a text in the pack's own tokens."""
        ids: list[int] = self.pack.members[self.pack.default_reference].vocabulary.encode(text)
        return ids

    def get_num_tokens(self, text: str) -> int:
        """How long a text is, in the pack's own tokens."""
        return len(self.get_token_ids(text))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """How long a chat is as the pack reads it, with its template and tools."""
        return turn_of(self.pack, messages, tools=tools).prompt_tokens
