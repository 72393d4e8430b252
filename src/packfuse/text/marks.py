"""Marks: control tokens inside an answer, such as `<think>`, and the text that they spell.

Where one vocabulary has a mark as a single control token, another has to spell it. The spelling is
used to carry distributions from one to the other. Text that is encoded never becomes a mark.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall("[a-z]+|[0-9]+", text.lower()))


MARKUP = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)
"""Added tokens that are control tokens by their looks."""

_BOUNDARY = re.compile("(begin|start|end)of[a-z]+")

_ANSWER = _words(
    """action analysis answer call calls channel constrain function functions message python reason
    reasoning reflection response scratchpad solution think thinking thought thoughts tool tools
    toolcall toolcalls"""
)
"""Words in the names of marks: reasoning, tool calls, channels."""

_STRUCTURE = _words(
    """assistant bos bot chatbot cls developer eod eom eos eot fim header human im image inst mask
    middle pad padding prefix prompt role s sentence sep suffix sys system text turn unk unknown
    user utterance vision"""
)
"""Words in the names of other control tokens in templates: turns, ends of texts, padding."""

_PLACEHOLDER = _words("dummy extra placeholder reserved special unused")

_EDGES = frozenset({"begin", "start", "end"})


def find_marks(
    controls: Mapping[str, int],
    columns: int,
    roles: Collection[int],
    tags: Collection[int],
    template: str,
) -> dict[int, bytes]:
    """The marks among a vocabulary's control tokens.

    A mark has a name of reasoning, tool calls or channels, or the chat template contains it and it
    does not belong to the structure of turns. Tokens with a role (end, beginning, padding) and
    placeholders are no marks.

    Args:
        controls: Ids of the control tokens by spelling.
        columns: Width of the model's logits; other ids are left out.
        roles: Ids of the tokens with a role.
        tags: Ids of tokens that are known to be marks.
        template: The source of the chat template.

    Returns:
        The spelling of each mark, by id.

    Example:
        >>> controls = {"<think>": 7, "<|im_start|>": 8, "<unused_tool_1>": 9, "<end>": 10}
        >>> find_marks(controls, 11, [10], [], "")
        {7: b'<think>'}
    """
    return {
        index: spelling.encode()
        for spelling, index in controls.items()
        if index < columns
        and index not in roles
        and (index in tags or _is_mark(spelling, template))
    }


def between_marks(text: bytes, marks: Collection[bytes]) -> list[bytes]:
    """The parts of a text outside of marks, without white space around them.

    Example:
        >>> between_marks(b"<think>Hm. </think>Yes", [b"<think>", b"</think>"])
        [b'Hm.', b'Yes']
    """
    pattern = b"|".join(map(re.escape, sorted(marks, reverse=True)))
    parts = re.split(pattern, text) if marks else [text]
    return [part.strip() for part in parts if part.strip()]


def role_ids(tokenizer: Any) -> set[int]:
    """The tokenizer's own tokens for the beginning of a text, padding and the like."""
    names = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
    found = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
    return {index for index in found if index is not None}


def _is_mark(spelling: str, template: str) -> bool:
    words = _words(spelling)
    if words & _PLACEHOLDER or any(map(str.isdigit, words)):
        return False
    if words & _ANSWER:
        return True
    structure = words & _STRUCTURE or words <= _EDGES or any(map(_BOUNDARY.match, words))
    return spelling in template and not structure
