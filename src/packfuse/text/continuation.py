"""A context and the text that follows it, in one member's tokens: which tokens are scored."""

from __future__ import annotations

from dataclasses import dataclass

from packfuse.errors import ConfigError, PromptError
from packfuse.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Continuation:
    """The tokens that are scored for a text after a context.

    This is the definition of lm-eval (`TemplateLM._encode_pair`), so that results are comparable:

    1. White space at the end of the context is moved to the text.
    2. The context is tokenized alone. Its n tokens are not scored.
    3. Context and text are tokenized together; all tokens after the first n are scored.

    If the last token of the context and the first token of the text merge in step 3, the scored
    tokens do not spell exactly the text, and `exact` is False.

    Attributes:
        head: The tokens of the context, which are not scored, with the beginning of sequence.
        new: The tokens that are scored.
        size: Length of the new tokens, in bytes.
        exact: Whether the new tokens spell exactly the bytes after the context.
    """

    head: tuple[int, ...]
    new: tuple[int, ...]
    size: int
    exact: bool

    @classmethod
    def of(cls, vocabulary: Vocabulary, context: str, text: str) -> Continuation:
        """Tokenize `context` and `text`.

        Raises:
            PromptError: for an empty context, or a text that adds no token to the context.
            ConfigError: for an empty text.
        """
        if not context:
            raise PromptError("the prompt is empty", hint="give at least one character")
        if not text:
            raise ConfigError("the continuation is empty", hint="give at least one character")
        given = bare(context)
        rest = context[len(given) :] + text
        start = vocabulary.prefix_of(given.encode()) + given.encode()
        head = vocabulary.encode_bytes(start)
        whole = vocabulary.encode_bytes(start + rest.encode())
        new = whole[len(head) :]
        if not new:
            raise PromptError(f"{text!r} adds no token to its context", hint="make the text longer")
        size = int(vocabulary.lengths[new].sum())
        exact = vocabulary.decode(new) == rest.encode()
        return cls((*vocabulary.prefix_ids, *head), tuple(new), size, exact)


def bare(context: str) -> str:
    """A context without trailing white space, unless it is nothing else.

    Example:
        >>> bare("The capital of "), bare("  ")
        ('The capital of', '  ')
    """
    return context.rstrip() or context
