"""Text for prompts: the documentation that comes with Python."""

from __future__ import annotations

from pydoc_data.topics import topics

from packfuse.text.vocabulary import Vocabulary

_TEXT = "\n\n".join(topics[name] for name in sorted(topics))
_STRIDE = 7919
"""A prime, so that texts begin all over the documentation."""


def prose(vocabulary: Vocabulary, tokens: int, number: int = 0) -> str:
    """About that many tokens; every number gives another text."""
    start = number * _STRIDE % (len(_TEXT) - 16 * tokens)
    start = _TEXT.index("\n\n", start) + 2
    ids = vocabulary.encode(_TEXT[start : start + 8 * tokens])[:tokens]
    return vocabulary.decode(ids).decode(errors="ignore")
