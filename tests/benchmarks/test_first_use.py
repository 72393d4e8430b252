"""The rules that judge first answers, and the items that they judge."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.parts.judge import RULES, code_in, judge, language_of, passes
from benchmarks.parts.prompts import TOKENS, items
from packfuse.generation.output.result import FusionRecord
from packfuse.tools import Reply, ToolCall

DONE = FusionRecord.model_construct(finish_reason="stop")
CUT = FusionRecord.model_construct(finish_reason="length")


def reply(text: str, *calls: ToolCall, record: FusionRecord = DONE) -> Reply:
    return Reply(text, "", calls, (), record)


def test_a_hundred_items_have_a_rule_of_their_own_each() -> None:
    known = [item for part in TOKENS for item in items(part)]
    assert len(known) == 100
    assert len({str(item["messages"]) for item in known}) == 100
    assert all(set(item) & set(RULES) for item in known)


@pytest.mark.parametrize("question", items("rag"), ids=lambda item: item["id"])
def test_every_answer_stands_in_the_passages_that_are_found(question: dict[str, Any]) -> None:
    shown = question["messages"][0]["content"].rpartition("Question:")[0]
    assert RULES["any"](question, reply(shown))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Rome is the capital.", None),
        ("Rome.\n\nUser: and France?", "turn"),
        ("Rome.<|im_end|>", "turn"),
        ("Rome.<start_of_turn>user", "turn"),
        ("The User: field is empty.", None),
        ("I am here. " * 2, None),
        ("I am here to help. " * 5, "loop"),
        ("ha " * 40, "loop"),
        ("", "something"),
        ("   ", "something"),
    ],
)
def test_what_no_answer_may_do(text: str, broken: str | None) -> None:
    assert [name for name, holds in judge({}, reply(text)).items() if not holds] == (
        [broken] if broken else []
    )


def test_an_answer_that_was_cut_did_not_end() -> None:
    assert not judge({}, reply("Rome", record=CUT))["ends"]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The capital of Italy is Rome.", "en"),
        ("Die Hauptstadt von Frankreich ist Paris.", "de"),
        ("La capitale de l'Allemagne est Berlin, je pense.", "fr"),
        ("La capital de Francia es París y es una ciudad.", "es"),
        ("法国的首都是巴黎。", "zh"),
        ("42", ""),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_words_do_not_count_inside_numbers() -> None:
    assert not RULES["any"]({"any": [["12"]]}, reply("It costs 120 euros."))
    assert RULES["any"]({"any": [["12", "twelve"]]}, reply("It costs 12 euros."))


@pytest.mark.parametrize(
    ("code", "good"),
    [
        ("def f(x): return x + 1", True),
        ("def f(x): return x", False),
        ("def f(x):\n    while True: pass", False),
        ("x = 'a' * (1 << 33)\ndef f(x): return x + 1", False),
        ("open('/etc/passwd.new', 'w').write('a' * (1 << 22))\ndef f(x): return x + 1", False),
        ("import sys; sys.exit(0)", False),
    ],
)
def test_code_runs_inside_bounds(code: str, good: bool) -> None:
    assert passes(code, "assert f(1) == 2") is good


def test_code_is_taken_from_its_fences() -> None:
    assert code_in("Here:\n```python\na = 1\n```\nand\n```\nb = 2\n```") == "a = 1\n\nb = 2\n"
    assert code_in("def f(): ...") == "def f(): ..."


def test_calls_and_json_are_compared_by_value() -> None:
    item = {"call": "add", "arguments": {"a": 12, "name": "oslo"}}
    call = ToolCall("1", "add", {"a": 12.0, "name": "Oslo, Norway"})
    assert RULES["call"](item, reply("", call))
    assert not RULES["call"](item, reply("", call, call))
    assert not RULES["call"]({"call": None}, reply("", call))
    wanted = {"json": {}, "values": {"age": 34, "tags": ["a", "b"]}}
    assert RULES["json"](wanted, reply('{"age": 34, "tags": ["b", "a"]}'))
    assert not RULES["json"](wanted, reply('{"age": 35, "tags": ["b", "a"]}'))
    assert not RULES["json"](wanted, reply('{"age": 34, "ta'))
