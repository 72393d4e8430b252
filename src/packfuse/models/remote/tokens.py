"""Compares the tokens of a server with those of the tokenizer here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from packfuse.models.remote.client import Client
from packfuse.models.token_check import TEXT, difference
from packfuse.text.vocabulary import Vocabulary


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
    theirs = tokenize(TEXT)
    ours = vocabulary.encode(TEXT)
    if theirs is None or theirs == ours:
        return
    raise client.error(
        f"its tokens are not those of the tokenizer: {difference(ours, theirs, 'there')}",
        "set tokenizer to that of the server's model",
    )
