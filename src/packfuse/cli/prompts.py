"""Prompts from arguments and standard input."""

from __future__ import annotations

import sys

from packfuse.errors import PromptError


def read_prompt(given: str | None) -> str:
    """The prompt: the argument, standard input, or the one followed by the other.

    Raises:
        PromptError: if there is neither, or both are empty.
    """
    if given == "-":
        text = _standard_input()
    elif not piped():
        text = _clean(given or "")
    else:
        text = "\n\n".join(part for part in (_clean(given or ""), _standard_input()) if part)
    if not text:
        raise PromptError("the prompt is empty", hint='give some text: packfuse run "Once upon"')
    return text


def piped() -> bool:
    """Whether standard input is not a terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def _standard_input() -> str:
    """All of it; the line end that closes it is not part of the text."""
    return sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")


def _clean(text: str) -> str:
    """Arguments that are not UTF-8 arrive with surrogates, which no tokenizer takes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
