"""A text and what follows it, in one member's tokens: what exactly is scored."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.errors import ConfigError, PromptError
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Continuation:
    """What is scored when a text is asked to follow another.

    lm-eval's definition, so that figures compare. White space at the end of the context goes to
    what follows. The context is tokenized by itself; context and text are tokenized together, and
    the tokens beyond as many as the context has are scored after the context's own. Where the last
    token of the context and the first of the text merge, other bytes are scored than those of the
    text; `exact` tells.

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
            PromptError: for an empty context, or a text that adds no token to it.
            ConfigError: for an empty text.
        """
        if not context:
            raise PromptError("the prompt is empty", hint="give at least one character")
        if not text:
            raise ConfigError("the continuation is empty", hint="give at least one character")
        given = bare(context)
        rest = context[len(given) :] + text
        start = vocabulary.text_prefix + given.encode()
        head = vocabulary.encode_bytes(start)
        whole = vocabulary.encode_bytes(start + rest.encode())
        new = whole[len(head) :]
        if not new:
            raise PromptError(
                f"{text!r} adds no token to what it follows", hint="give more of the text"
            )
        size = int(vocabulary.lengths[new].sum())
        exact = vocabulary.decode(new) == rest.encode()
        return cls((*vocabulary.prefix_ids, *head), tuple(new), size, exact)


def bare(context: str) -> str:
    """A context without trailing white space, which is scored with what follows it."""
    return context.rstrip() or context
