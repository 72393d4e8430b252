"""Rules that judge the answers of the first-use suite; no model judges."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from packfuse.tools import Reply

Rule = Callable[[Mapping[str, Any], Reply], bool]

_TURN = re.compile(
    r"(^|\n)\s*(User|Human|Assistant|System|USER|ASSISTANT)\s*:|<\|?[a-z_]*(im_|start_|end_|turn|"
    r"header|eot)[a-z_]*\|?>|</?s>|\[/?INST\]"
)
"""What begins a turn of a dialogue in the syntax of any usual template, or in plain text."""
_LOOP = re.compile(r"(.{12,}?)\1{3,}|(.{2,11}?)\2{11,}", re.DOTALL)
"""The same 12 characters or more four times in a row, or shorter text twelve times."""
_SENTENCE = re.compile(r"[.!?](?=\s|$)")
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL)
_COMMON = {
    "en": "the is a of to and you i in it that for are how can with by at what was has here not",
    "de": "der die das ist und ich nicht ein eine zu mir dir wie gut es hat hallo danke",
    "fr": "le la les est et je un une de vous bien merci ça bonjour pas en",
    "es": "el la es y un una de que en hola bien gracias estoy puedo por cómo",
}
"""Frequent words by language."""
_SECONDS, _DONE = 10, "all tests passed"
_LIMITS = f"""import resource
for kind, most in (("CPU", {_SECONDS}), ("AS", 1 << 30), ("FSIZE", 1 << 20)):
    resource.setrlimit(getattr(resource, f"RLIMIT_{{kind}}"), (most, most))
"""
"""Bounds on time, memory and files, set by the process that runs an answer's code."""


def judge(item: Mapping[str, Any], reply: Reply) -> dict[str, bool]:
    """By name, whether each rule that applies to an item holds for an answer."""
    return {name: rule(item, reply) for name, rule in RULES.items() if _applies(name, item)}


def _applies(name: str, item: Mapping[str, Any]) -> bool:
    return name in ALWAYS or name in item


def _ends(item: Mapping[str, Any], reply: Reply) -> bool:
    return reply.record.finish_reason != "length"


def _no_turn(item: Mapping[str, Any], reply: Reply) -> bool:
    return not _TURN.search(reply.text)


def _no_loop(item: Mapping[str, Any], reply: Reply) -> bool:
    return not _LOOP.search(reply.text)


def _something(item: Mapping[str, Any], reply: Reply) -> bool:
    return bool(reply.text.strip() or reply.calls)


def _any(item: Mapping[str, Any], reply: Reply) -> bool:
    text = reply.text.casefold()
    return all(any(_occurs(str(one), text) for one in group) for group in item["any"])


def _occurs(wanted: str, text: str) -> bool:
    """Whether a text has these words; not inside a longer number or a longer word's end."""
    wanted = wanted.casefold()
    return bool(re.search(rf"(?<![0-9]){re.escape(wanted)}(?![0-9])", text))


def language_of(text: str) -> str:
    """The language of a text by its script and its frequent words; empty if these do not tell."""
    if re.search(r"[\u4e00-\u9fff]", text):
        return "zh"
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {name: sum(word in own.split() for word in words) for name, own in _COMMON.items()}
    return max(counts, key=lambda name: counts[name]) if any(counts.values()) else ""


def _language(item: Mapping[str, Any], reply: Reply) -> bool:
    """The right language; a short answer may be without frequent words."""
    found = language_of(reply.text)
    few = len(reply.text.split()) <= 8
    return found == item["language"] or (few and not found)


def _code(item: Mapping[str, Any], reply: Reply) -> bool:
    return passes(code_in(reply.text), item["tests"])


def code_in(answer: str) -> str:
    """The code of an answer: its fenced blocks, or all of it."""
    return "\n".join(_FENCE.findall(answer)) or answer


def passes(code: str, tests: str) -> bool:
    """Whether tests pass after code, in a process with bounds on time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(  # noqa: S603  (what a model wrote, inside bounds)
                [
                    sys.executable,
                    "-I",
                    "-c",
                    f"{_LIMITS}\n{code}\n{tests}\nprint()\nprint({_DONE!r})",
                ],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=2 * _SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.decode(errors="replace").endswith(f"{_DONE}\n")


def _call(item: Mapping[str, Any], reply: Reply) -> bool:
    """The expected call and no other, with the expected arguments."""
    if item["call"] is None:
        return not reply.calls
    wanted = item["arguments"]
    return [call.name for call in reply.calls] == [item["call"]] and _matches(
        reply.calls[0].arguments, wanted
    )


def _json(item: Mapping[str, Any], reply: Reply) -> bool:
    try:
        found = json.loads(reply.text)
    except ValueError:
        return False
    return isinstance(found, dict) and _matches(found, item["values"])


def _matches(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_equal(found.get(name), value) for name, value in wanted.items())


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return isinstance(found, str) and wanted in found.casefold()
    if isinstance(wanted, Sequence):
        return isinstance(found, list) and sorted(map(str, found)) == sorted(wanted)
    return bool(found == wanted)


RULES: dict[str, Rule] = {
    "something": _something,
    "ends": _ends,
    "turn": _no_turn,
    "loop": _no_loop,
    "language": _language,
    "any": _any,
    "pattern": lambda item, reply: bool(re.search(item["pattern"], reply.text)),
    "words": lambda item, reply: len(reply.text.split()) <= item["words"],
    "lines": lambda item, reply: len(reply.text.strip().splitlines()) <= item["lines"],
    "sentences": lambda item, reply: len(_SENTENCE.findall(reply.text)) <= item["sentences"],
    "tests": _code,
    "call": _call,
    "json": _json,
}
"""The rules by name; those not in `ALWAYS` apply to items that name them."""
ALWAYS = ("something", "ends", "turn", "loop")
