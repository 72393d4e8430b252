"""The prompts of the first-use suite, with what their answers are judged by."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parents[1] / "data" / "first_use"
TOKENS = {"chat": 128, "form": 64, "code": 320, "rag": 64, "tools": 96}
"""Most tokens of an answer, by part."""
PASSAGES = 3


def items(part: str) -> list[dict[str, Any]]:
    """The items of a part; each has `messages` and the arguments of its `Turn` in `call_with`."""
    data = yaml.safe_load((DATA / f"{part}.yaml").read_text(encoding="utf-8"))
    if part == "rag":
        return [_with_passages(item, data["passages"]) for item in data["questions"]]
    if part == "tools":
        known = [_tool(tool) for tool in data["tools"]]
        return [_with_tools(item, known) for item in data["items"]]
    return [_plain(item) for item in data]


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    messages = item.get("messages") or [{"role": "user", "content": item["ask"]}]
    return {**item, "messages": messages, "call_with": {}}


def _with_passages(item: dict[str, Any], passages: Sequence[str]) -> dict[str, Any]:
    """A question after the passages that share the rarest words with it."""
    texts = [set(_words(text)) for text in passages]
    known = Counter(word for text in texts for word in text)
    asked = set(_words(item["ask"]))

    def score(text: set[str]) -> float:
        return sum(math.log(len(texts) / known[word]) for word in asked & text)

    best = sorted(range(len(texts)), key=lambda at: -score(texts[at]))[:PASSAGES]
    shown = "\n".join(f"[{n}] {passages[at]}" for n, at in enumerate(best, 1))
    ask = f"Answer the question from these passages.\n\n{shown}\n\nQuestion: {item['ask']}"
    return {**item, "messages": [{"role": "user", "content": ask}], "call_with": {}}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _schema(fields: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {"strings": {"type": "array", "items": {"type": "string"}}}
    own = {
        name: {"enum": kind} if isinstance(kind, list) else kinds.get(kind, {"type": kind})
        for name, kind in fields.items()
    }
    return {
        "type": "object",
        "properties": own,
        "required": list(own),
        "additionalProperties": False,
    }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {**tool, "parameters": _schema(tool["parameters"])}
    return {"type": "function", "function": function}


def _with_tools(item: dict[str, Any], known: list[dict[str, Any]]) -> dict[str, Any]:
    if "json" in item:
        arguments: dict[str, Any] = {"response_format": _schema(item["json"])}
    else:
        arguments = {"tools": known, "tool_choice": item.get("force", "auto")}
    return {**_plain(item), "call_with": arguments}
