"""The prompts of requests: messages, a text, token ids, or a list of texts or ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packfuse.pack import Pack
from packfuse.server.problems import RequestError

MAX_PROMPTS = 256
"""Most prompts of one request."""


def prompts_of(pack: Pack, given: Any) -> list[str]:
    """The texts of a `prompt`; token ids are those of the default reference.

    Raises:
        RequestError: for anything else, and for ids that no text has.
    """
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise RequestError(400, "prompt is a text, a list of texts, or token ids", "prompt")
    if _are_ids(given):
        return [_text(pack, given)]
    if len(given) > MAX_PROMPTS:
        raise RequestError(400, f"prompt has more than {MAX_PROMPTS} texts", "prompt")
    found = []
    for one in given:
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, list) and one and _are_ids(one):
            found.append(_text(pack, one))
        else:
            raise RequestError(400, f"{one!r} is no text and no list of token ids", "prompt")
    return found


def messages_of(given: Any) -> list[Any]:
    """The messages of a chat, whose roles are in an order that a chat can have.

    Raises:
        RequestError: for anything else.
    """
    if not isinstance(given, list) or not given:
        raise RequestError(400, "messages is a list of messages", "messages")
    calling = False
    for message in given:
        role = message.get("role") if isinstance(message, dict) else None
        if role == "tool" and not calling:
            raise RequestError(
                400, "a message of role 'tool' follows the assistant's tool_calls", "messages"
            )
        calling = role == "tool" or (role == "assistant" and bool(message.get("tool_calls")))
    return given


def _are_ids(given: Sequence[Any]) -> bool:
    return all(isinstance(one, int) and not isinstance(one, bool) for one in given)


def _text(pack: Pack, ids: Sequence[int]) -> str:
    """The text of token ids."""
    vocabulary = pack.members[pack.default_reference].vocabulary
    if not all(0 <= index < vocabulary.size for index in ids):
        raise RequestError(400, f"token ids are from 0 to {vocabulary.size - 1}", "prompt")
    rest = list(ids)
    prefix = list(vocabulary.prefix_ids)
    if prefix and rest[: len(prefix)] == prefix:
        rest = rest[len(prefix) :]  # every member begins a text with its own
    control = next((index for index in rest if index in vocabulary.control_ids), None)
    if control is not None:
        raise RequestError(
            400, f"token {control} is a control token, which no text has; use a chat", "prompt"
        )
    try:
        return vocabulary.decode(rest).decode()
    except UnicodeDecodeError as error:
        raise RequestError(400, "the token ids end inside a character", "prompt") from error
