"""Compares the tokens of a server with those of the tokenizer here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from packfuse.models.remote.client import Client
from packfuse.text.vocabulary import Vocabulary

_TEXT = "The town's 3 bridges (1824, 12 m) aren't far: naïve façades, 東京,\n\n\tx += 1  # π"
"""Text on which tokenizers that are not the same differ."""


def check_tokens(
    client: Client, vocabulary: Vocabulary, tokenize: Callable[[str], Sequence[int] | None]
) -> None:
    """Compare the tokens of a text with the server's own.

    Args:
        client: The connection.
        vocabulary: The tokenizer here.
        tokenize: The server's own token ids of a text; None if it does not say.

    Raises:
        MemberError: if they differ, with the first difference.
    """
    theirs = tokenize(_TEXT)
    ours = vocabulary.encode(_TEXT)
    if theirs is None or theirs == ours:
        return
    at = next(
        (n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    raise client.error(
        f"its tokens are not those of the tokenizer: of {_TEXT!r} number {at + 1} is "
        f"{theirs[at : at + 1]} there and {ours[at : at + 1]} here",
        "set tokenizer to that of the server's model",
    )
