"""The fields of `PackFuse`: the pack, and the settings of calls."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, Self

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.packfuse.loading import FURTHER
from pydantic import Field, PrivateAttr

from packfuse import Pack
from packfuse.errors import ConfigError
from packfuse.generation.request import MAX_NEW_TOKENS, refuse_several
from packfuse.settings import PackSettings
from packfuse.tools.arguments import check_names, merge_arguments
from packfuse.tools.logprobs import take_logprobs


def _pack_setting(name: str) -> Any:
    """A field that replaces a setting of the pack; its description is that of `PackSettings`."""
    description = PackSettings.model_fields[name].description
    return Field(default=None, description=f"{description} None: the pack's setting.")


class PackFuseFields(CustomLLM):
    """The fields of `PackFuse`, its pack, and its metadata.

    `alignment`, `reference` and `load_kwargs` are used for loading. They are fields of
    `packfuse.settings.PackConfig`, which validates them.
    """

    models: list[str | dict[str, Any]] | None = Field(
        default=None,
        description="Hub ids, folders, GGUF files, or mappings with the settings of a member.",
    )
    pack_file: str | None = Field(default=None, description="A YAML file for Pack.from_config.")
    fusion: Any = _pack_setting("fusion")
    weighting: Any = _pack_setting("weighting")
    alignment: Any = _pack_setting("alignment")
    reference: str | None = _pack_setting("reference")
    load_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments for loading: dtype, device_map, ..."
    )
    temperature: float | None = Field(
        default=None, ge=0, description="Sampling temperature; None or 0 for greedy decoding."
    )
    max_new_tokens: int = Field(
        default=MAX_NEW_TOKENS, gt=0, description="Maximum number of tokens of an answer."
    )
    context_window: int | None = Field(
        default=None, gt=0, description="In tokens; None for the smallest of the members'."
    )
    generate_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of Pack.generate: top_p, stop, seed, trace, ... The "
        "constructor takes them by their own names too.",
    )
    is_chat_model: bool = Field(default=True, description="Whether engines use chats.")
    is_function_calling_model: bool = Field(
        default=True, description="Whether agents and structured output use tool calls."
    )
    chat_completions: bool = Field(
        default=False,
        description="Whether complete() sends its prompt as a chat, instead of continuing it.",
    )

    _pack: Pack | None = PrivateAttr(default=None)

    @property
    def pack(self) -> Pack:
        """The pack.

        Raises:
            ConfigError: for a pickled copy of an LLM whose pack was passed as an object.
        """
        if self._pack is None:
            raise ConfigError(
                "this PackFuse was copied without its pack",
                hint="PackFuse.from_dict(llm.to_dict(), pack=pack) makes one with a pack",
            )
        return self._pack

    @property
    def metadata(self) -> LLMMetadata:
        """The properties that engines and agents read."""
        return LLMMetadata(
            context_window=self.context_window or self.pack.context_window,
            num_output=self._arguments({}).get("max_new_tokens", self.max_new_tokens),
            is_chat_model=self.is_chat_model,
            is_function_calling_model=self.is_function_calling_model,
            model_name="+".join(self.pack.names),
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids for `Settings.tokenizer`, as many as count in `metadata.context_window`.

        They are of the member that needs most room for the text; see `Pack.count_tokens`.
        """
        return self.pack.count_ids(text)

    def _arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, for `Turn`.

        Raises:
            ConfigError: for unknown arguments, or those that ask for several answers.
        """
        check_names("a call of PackFuse", kwargs, FURTHER)
        names = ("max_new_tokens", "temperature", "fusion", "weighting")
        own = {name: getattr(self, name) for name in names}
        arguments = merge_arguments(merge_arguments(own, self.generate_kwargs), kwargs)
        refuse_several(arguments, "a response of LlamaIndex")
        take_logprobs(arguments)
        return arguments

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy with the same pack."""
        memo = {} if memo is None else memo
        memo[id(self._pack)] = self._pack
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        """The fields without the pack; unpickling loads the pack again by its names.

        A pack that was passed loads itself, if it was loaded by name.
        """
        bare = self.model_copy()
        named = self.models is not None or self.pack_file is not None
        bare._pack = None if named or self._pack is None else _if_picklable(self._pack)
        return super(PackFuseFields, bare).__getstate__()


def _if_picklable(pack: Pack) -> Pack | None:
    try:
        pickle.dumps(pack)
    except ConfigError:
        return None
    return pack
