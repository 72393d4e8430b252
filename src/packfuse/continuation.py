"""A text and what follows it, in one member's tokens: what exactly is scored."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.errors import ConfigError, PromptError
from packfuse.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Continuation:
    """What is scored when a text is asked to follow another.

    Both are tokenized together, and the tokens beyond as many as the context has by itself are
    scored: lm-eval's definition, so that figures compare. Where the last token of the context and
    the first of the continuation merge, that scores other bytes than those of the continuation;
    `exact` tells.

    Attributes:
        head: The tokens that are given, beginning of sequence included.
        new: The tokens that are scored.
        size: Bytes that the new tokens spell.
        exact: Whether these are the bytes after the context and no others.
    """

    head: tuple[int, ...]
    new: tuple[int, ...]
    size: int
    exact: bool

    @classmethod
    def of(cls, vocabulary: Vocabulary, context: str, text: str) -> Continuation:
        """Tokenize `context` and `text`.

        Raises:
            PromptError: for an empty context.
            ConfigError: for an empty text, or one that adds no token to its context.
        """
        if not context:
            raise PromptError("the prompt is empty", hint="give at least one character")
        if not text:
            raise ConfigError("the continuation is empty", hint="give at least one character")
        given = bare(context)
        rest = context[len(given) :] + text
        start = vocabulary.text_prefix + given.encode()
        before = vocabulary.encode_bytes(start)
        ids = vocabulary.encode_bytes(start + rest.encode())
        head, new = ids[: len(before)], ids[len(before) :]
        if not new:
            raise ConfigError(
                f"{text!r} adds no token to what it follows", hint="give more of the text"
            )
        size = int(vocabulary.lengths[new].sum())
        prefix = vocabulary.prefix_ids
        return cls((*prefix, *head), tuple(new), size, size == len(rest.encode()))


def bare(context: str) -> str:
    """A context without trailing white space, which is scored with what follows it."""
    return context.rstrip() or context
