"""The sets of questions: what is asked, how an answer is judged, and how many there are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from packfuse.evaluation import read_questions
from packfuse.evaluation.files import Fields
from packfuse.evaluation.journal import digest
from packfuse.evaluation.question import Question
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.base import Task
from packfuse.registry import parse_spec

from ..prompts import TOKENS, items
from .texts import prose, python_source

CODE = Path(__file__).parents[2] / "data" / "code.jsonl"
CODE_TOKENS = 320
CODE_ALONE = "Answer with the code alone."
"""Without it, most of what is written explains the code."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: A digest of its content.
        content: The `Question` of a task; of a chat a mapping, see `chats.answer`.
        tokens: Most tokens of a written answer.
    """

    key: str
    content: Any
    tokens: int


@dataclass(frozen=True)
class QuestionSet:
    """One set.

    Attributes:
        title: What the tables call it.
        how: How it is asked and judged, in a few words.
        find: Its items, from the folder of question files and a seed; None without a file.
        task: The `Task` that scores or judges; None for chats, which rules judge.
    """

    title: str
    how: str
    find: Callable[[Path | None, int], list[Item] | None]
    task: Any = None

    @property
    def asking(self) -> str:
        """The task with its parameters, as text; empty for chats."""
        return "" if self.task is None else f"{self.task.name} {self.task.model_dump_json()}"

    @property
    def written(self) -> bool:
        """Whether answers are written, not scored."""
        return self.task is None or self.task.generates


def _task(text: str) -> Task:
    task: Task = tasks().make(parse_spec(text))
    return task


def _asked(
    pattern: str, task: Task, most: int | None, data: Path | None, seed: int
) -> list[Item] | None:
    """The questions of a file under a task."""
    paths = sorted(data.glob(pattern)) if data else []
    if not paths:
        return None
    found = read_questions(paths[0], task, most, seed).questions
    return [_item(question, task) for question in found]


def _item(question: Question, task: Task) -> Item:
    return Item(_key(task.name, question.key), question, task.max_tokens)


def _solutions(
    pattern: str, task: Task, most: int, data: Path | None, seed: int
) -> list[Item] | None:
    """The right answers to the questions of a file, as texts to be scored."""
    known = _asked(pattern, task, most, data, seed)
    asked = [item.content for item in known or ()]
    texts = [replace(q, options=(q.solution,), gold=0, accepted=()) for q in asked]
    return [_item(text, TEXT) for text in texts] if known else None


def _passages(make: Callable[[int, int], list[str]], _: Path | None, seed: int) -> list[Item]:
    read = [TEXT.read(Fields({"text": text}, "passage")) for text in make(TEXTS, seed)]
    return [_item(question, TEXT) for question in read if question]


def _first_use(_: Path | None, seed: int) -> list[Item]:
    found = [_chat(item, TOKENS[part], part) for part in TOKENS for item in items(part)]
    random.Random(seed).shuffle(found)  # noqa: S311 - an order of questions, no secret
    return found


def code_items() -> list[dict[str, Any]]:
    """The functions to write, each with its tests."""
    return [json.loads(line) for line in CODE.read_text(encoding="utf-8").splitlines()]


def _code(_: Path | None, seed: int) -> list[Item] | None:
    if not CODE.exists():
        return None
    asked = [
        {
            "messages": [{"role": "user", "content": f"{item['ask']} {CODE_ALONE}"}],
            "call_with": {},
            **item,
        }
        for item in code_items()
    ]
    found = [_chat(item, CODE_TOKENS, "code") for item in asked]
    random.Random(seed).shuffle(found)  # noqa: S311 - an order of questions, no secret
    return found


def _chat(item: dict[str, Any], tokens: int, part: str) -> Item:
    key = _key(part, str(tokens), json.dumps(item, sort_keys=True, default=str))
    return Item(key, item, tokens)


def _key(*parts: str) -> str:
    return digest(*parts)[:12]


TEXTS = 300
"""Passages of a domain, and right answers that are scored as texts."""
TEXT = _task("text")
TRIVIA = _task("answer:shots=4,max_tokens=16")
MATHS = _task("number:shots=2,max_tokens=200")
CHOICE = _task("choice")
LETTER = _task("letter")
PLAIN = {"trivia": _task("answer"), "maths": _task("number")}

SETS = {
    "first-use": QuestionSet("First prompts", "chats, judged by rules", _first_use),
    "triviaqa": QuestionSet(
        "TriviaQA",
        "written after 4 examples, exact match",
        partial(_asked, "triviaqa*.jsonl", TRIVIA, 1000),
        TRIVIA,
    ),
    "gsm8k": QuestionSet(
        "GSM8K",
        "written with its working after 2 examples, the number",
        partial(_asked, "gsm8k*.jsonl", MATHS, 300),
        MATHS,
    ),
    "code": QuestionSet("Code", "functions, chats, unit tests", _code),
    "arc": QuestionSet(
        "ARC-Challenge",
        "the likelier option, per byte",
        partial(_asked, "arc*.jsonl", CHOICE, None),
        CHOICE,
    ),
    "piqa": QuestionSet(
        "PIQA, how-to",
        "the likelier option, per byte",
        partial(_asked, "piqa*.jsonl", CHOICE, None),
        CHOICE,
    ),
    "mmlu": QuestionSet(
        "MMLU",
        "by letter, without examples",
        partial(_asked, "mmlu*.jsonl", LETTER, 1000),
        LETTER,
    ),
    "python": QuestionSet(
        "Python source", "second half of a passage", partial(_passages, python_source), TEXT
    ),
    "prose": QuestionSet(
        "Documentation", "second half of a passage", partial(_passages, prose), TEXT
    ),
    "mathematics": QuestionSet(
        "Mathematics",
        "the solutions of GSM8K",
        partial(_solutions, "gsm8k*.jsonl", PLAIN["maths"], TEXTS),
        TEXT,
    ),
    "trivia": QuestionSet(
        "Trivia",
        "the answers of TriviaQA",
        partial(_solutions, "triviaqa*.jsonl", PLAIN["trivia"], TEXTS),
        TEXT,
    ),
}
"""The sets, in the order of the tables."""


def rounds(most: int) -> Sequence[int]:
    """Growing sizes: every set has some questions early."""
    sizes = [size for size in (20, 40, 100, 300, 1000) if size < most]
    return [*sizes, most]
