"""A placeholder that LangChain's tooling looks for."""

import pytest


@pytest.mark.compile
def test_placeholder() -> None:
    """Integration tests can be collected."""
