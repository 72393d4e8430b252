"""The marks of a model's replies: where its reasoning begins and ends, and the format harmony.

They are found in the chat template and among the control tokens of a tokenizer, not by the name of
a model.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

HARMONY = (
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
)
"""The control tokens of the reply format of gpt-oss."""
HARMONY_ENDS = ("<|return|>", "<|call|>")
"""Those that end a turn."""

_OPENING = re.compile(
    r"<\|?[\w:.-]*(?:think|thought|reason|inner_prefix)[\w:.-]*\|?>"
    r"|\[[\w:.-]*(?:think|thought|reason)[\w:.-]*\]"
    r"|◁[\w:.-]*(?:think|thought|reason)[\w:.-]*▷",
    re.IGNORECASE,
)
_TURNED = [("start", "end"), ("begin", "end"), ("prefix", "suffix"), ("open", "close")]
"""Words by which the names of an opening and a closing mark may differ."""


class Reasoning(NamedTuple):
    """The marks around the reasoning in a reply."""

    opening: str
    closing: str


THINK = Reasoning("<think>", "</think>")
"""The marks that are recognized in the replies of every model."""


def speaks_harmony(controls: Collection[str]) -> bool:
    """Whether a tokenizer has the control tokens of harmony."""
    return all(name in controls for name in HARMONY)


def reasoning_marks(template: str, controls: Collection[str]) -> tuple[Reasoning, ...]:
    """The marks of reasoning of a chat template and its control tokens; `THINK` comes first.

    Example:
        >>> reasoning_marks("{{ '<seed:think>' }} ... {{ '</seed:think>' }}", ())[1:]
        (Reasoning(opening='<seed:think>', closing='</seed:think>'),)
    """
    text = "\n".join([template, *controls])
    found = dict.fromkeys([THINK])
    for opening in _OPENING.findall(text):
        closing = next((name for name in _closings(opening) if name in text), None)
        if closing is not None:
            found[Reasoning(opening, closing)] = None
    return tuple(found)


def _closings(opening: str) -> list[str]:
    """What may close a mark."""
    named = [f"{opening[0]}/{opening[1:]}", f"{opening[:2]}/{opening[2:]}"]
    for begin, end in _TURNED:
        named += [opening.replace(b, e) for b, e in ((begin, end), (begin.upper(), end.upper()))]
    return [name for name in dict.fromkeys(named) if name != opening]
