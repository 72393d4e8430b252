"""Prompts from arguments and standard input."""

from __future__ import annotations

import sys

from packfuse.errors import PromptError


def read_prompt(given: str | None) -> str:
    """The prompt: the argument, standard input, or the argument followed by standard input.

    Raises:
        PromptError: if the prompt is empty.
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
    """All of standard input, without its last line end."""
    return sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")


def _clean(text: str) -> str:
    """Replace the surrogates of arguments that are not UTF-8, which tokenizers do not accept."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
