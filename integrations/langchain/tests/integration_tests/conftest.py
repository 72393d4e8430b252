"""Which of LangChain's tests on the starter pack `make test` runs: a few, as they take minutes."""

from __future__ import annotations

import pytest

QUICK = {
    "test_invoke",
    "test_stream",
    "test_tool_calling[model0]",
    "test_structured_output[json_schema]",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the others as slow."""
    for item in items:
        of_starter = getattr(item, "cls", None) and item.cls.__name__ == "TestStarterPack"  # type: ignore[attr-defined]
        if of_starter and item.name not in QUICK:
            item.add_marker(pytest.mark.slow)
