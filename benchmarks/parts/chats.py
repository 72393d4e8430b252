"""One chat, answered and judged by rules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from packfuse import Pack
from packfuse.tools import Turn

from .judge import judge


def answer(
    pack: Pack, item: Mapping[str, Any], tokens: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The answer to an item of `prompts.items`, with what the rules say of it.

    Args:
        pack: The pack, or a member alone.
        item: Its `messages`, the arguments of the call in `call_with`, and the rules.
        tokens: Most tokens of the answer.
        settings: Further arguments of the call.
    """
    turn = Turn(pack, item["messages"], max_new_tokens=tokens, **{**item["call_with"], **settings})
    began = time.perf_counter()
    reply = turn.answer()
    return {
        "text": reply.text,
        "calls": [[call.name, call.arguments] for call in reply.calls],
        "weights": reply.record.weights,
        "rules": judge(item, reply),
        "seconds": round(time.perf_counter() - began, 2),
        "tokens": reply.record.usage.completion_tokens,
    }
