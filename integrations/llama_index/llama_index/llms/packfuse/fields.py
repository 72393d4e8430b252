"""What an LLM over a pack is set to: where the pack comes from, and how to ask it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms.custom import CustomLLM
from pydantic import Field, PrivateAttr

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.generation.request import MAX_NEW_TOKENS
from packfuse.tools.arguments import merged


class PackSettings(CustomLLM):
    """The settings of `PackFuse`, its pack, and what it says of itself."""

    models: list[str | dict[str, Any]] | None = Field(
        default=None, description="Hub ids, folders, GGUF files, or mappings of a member's settings"
    )
    pack_file: str | None = Field(default=None, description="A YAML file, for Pack.from_config")
    fusion: Any = Field(default=None, description="Fusion rule; None: the pack's own")
    weighting: Any = Field(default=None, description="Whom to trust; None: the pack's own")
    alignment: Any = Field(default=None, description="How vocabularies are compared")
    reference: str | None = Field(default=None, description="The member whose tokens are used")
    load_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More for loading: dtype, device_map, ..."
    )
    temperature: float | None = Field(default=None, ge=0, description="None or 0: no sampling")
    max_new_tokens: int = Field(
        default=MAX_NEW_TOKENS, gt=0, description="Most tokens of an answer"
    )
    context_window: int | None = Field(
        default=None, gt=0, description="In tokens; None: the smallest member's"
    )
    generate_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More for Pack.generate: top_p, stop, seed, trace, ..."
    )
    is_chat_model: bool = Field(default=True, description="Whether engines chat with it")
    is_function_calling_model: bool = Field(default=True, description="Whether it calls tools")
    chat_completions: bool = Field(
        default=False,
        description="Whether complete() asks its prompt in a chat; False: it continues the text",
    )

    _pack: Pack | None = PrivateAttr(default=None)

    @property
    def pack(self) -> Pack:
        """The pack that answers.

        Raises:
            ConfigError: for a copy from another process, where a pack of objects cannot go.
        """
        if self._pack is None:
            raise ConfigError(
                "this PackFuse was copied without its pack",
                hint="PackFuse.from_dict(llm.to_dict(), pack=pack) makes one with a pack",
            )
        return self._pack

    @property
    def metadata(self) -> LLMMetadata:
        """What engines and agents want to know."""
        return LLMMetadata(
            context_window=self.context_window or self.pack.context_window,
            num_output=self._arguments({}).get("max_new_tokens", self.max_new_tokens),
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self.is_function_calling_model,
            model_name="+".join(self.pack.names),
        )

    def tokenize(self, text: str) -> list[int]:
        """Tokens of the default reference, for `Settings.tokenizer`."""
        return self.pack.members[self.pack.default_reference].vocabulary.encode(text)

    def _arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = ("max_new_tokens", "temperature", "fusion", "weighting")
        own = {name: getattr(self, name) for name in names}
        return merged(merged(own, self.generate_kwargs), kwargs)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with the same pack: members are loaded once."""
        memo = {} if memo is None else memo
        memo[id(self._pack)] = self._pack
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the pack, which whoever reads it loads again by its names."""
        bare = self.model_copy()
        bare._pack = None
        return super(PackSettings, bare).__getstate__()
