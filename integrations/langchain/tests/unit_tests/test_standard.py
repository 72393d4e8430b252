"""LangChain's own unit tests of a chat model."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_packfuse import ChatPackFuse
from langchain_tests.unit_tests import ChatModelUnitTests

from packfuse import Pack


class TestChatPackFuse(ChatModelUnitTests):
    """No test is overridden or skipped."""

    @pytest.fixture(autouse=True)
    def _pack(self, tiny: Pack) -> None:
        type(self).pack = tiny  # type: ignore[attr-defined]

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatPackFuse

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"pack": self.pack}  # type: ignore[attr-defined]
