"""The texts with which another turn of a chat begins, found out from a chat template."""

from __future__ import annotations

import functools
import re

from packfuse.text.chats.member_template import MemberTemplate
from packfuse.text.chats.sandbox import TemplateRefusalError

_WORDS = ("zqaz", "zqbz", "zqcz")
_CHAT = [
    {"role": role, "content": word}
    for role, word in zip(("user", "assistant", "user"), _WORDS, strict=True)
]
_LETTERS = 3
"""A mark without control tokens has at least that many letters: `---` or `>` are common in text."""


@functools.lru_cache(maxsize=64)
def turn_marks(template: MemberTemplate) -> tuple[str, ...]:
    r"""What opens a turn of the user or the assistant, with and without what ends the turn before.

    A chat of three turns is rendered, and what stands between their texts is what separates turns.
    For ChatML these are `<|im_end|>\n<|im_start|>user`, `<|im_start|>user`, and the same for the
    assistant. Nothing is found where a template has too little of a mark, or refuses such a chat.
    """
    try:
        whole = template.text(_CHAT, {}, generation=False)
        short = template.text(_CHAT[:2], {}, generation=False)
        opened = template.text(_CHAT[:1], {})
    except TemplateRefusalError:
        return ()
    found = re.search("(?s)%s(.*)%s(.*)%s(.*)" % _WORDS, whole)  # noqa: UP031
    if found is None:
        return ()
    assistant, user, end_of_user = found.groups()
    marks = _marks(user, short.partition(_WORDS[1])[2], template)
    answer = opened.partition(_WORDS[0])[2].rstrip()
    if not (assistant.startswith(answer) and len(assistant.rstrip()) > len(answer)):
        # Otherwise an answer itself writes a part of this (the channels of gpt-oss).
        marks += _marks(assistant, end_of_user, template)
    return tuple(dict.fromkeys(marks))


def _marks(separator: str, end: str, template: MemberTemplate) -> list[str]:
    """The whole separator between two turns, and the part of it that opens the second.

    Args:
        separator: What stands between the texts of two turns.
        end: What stands after the first of them at the end of a chat.
        template: The template.
    """
    whole = separator.rstrip()
    opening = whole
    if any(control in end for control in template.controls):
        # In `[INST] question [/INST] answer`, what ends one turn opens the next.
        opening = whole.removeprefix(end.rstrip()).lstrip() or whole
    ends = [opening.rfind(mark) + len(mark) for mark in template.ends if mark in opening]
    opening = opening[max(ends, default=0) :]
    opening = opening.lstrip() if ends else opening
    ended = opening != whole
    if any(control in opening for control in template.controls):
        return [whole.lstrip(), opening.lstrip()]
    if sum(map(str.isalpha, opening)) < _LETTERS:
        return []
    if opening.startswith("\n") or not opening.strip()[0].isalnum():
        return [whole.lstrip(" "), opening.lstrip(" ")]
    # A bare word such as `USER:` is common in text, too.
    return [whole] if ended else []
