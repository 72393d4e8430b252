"""Question files and tasks: what is read, what is refused and where, and how answers are graded."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packfuse.errors import DataError
from packfuse.evaluation import read_questions, task_for
from packfuse.evaluation.files import Fields, read_lines
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.answer import normalize
from packfuse.evaluation.tasks.base import Likelihoods, Task
from packfuse.evaluation.tasks.number import last_number

CHOICE: dict[str, Any] = {"question": " Sky? ", "A": "red", "B": " blue ", "C": "", "answer": "B"}
NUMBER = {"question": "3 + 4?", "answer": "That is\n3 + 4 = 7\n#### 7"}
ANSWER = {"question": "Capital of France?", "answer": ["Paris", "City of Light"]}
TEXT = {"text": "Once upon a time there was a small town by the sea."}
LINES: dict[str, dict[str, Any]] = {
    "choice": CHOICE,
    "letter": CHOICE,
    "number": NUMBER,
    "answer": ANSWER,
    "text": TEXT,
}

every_task = pytest.mark.parametrize("name", sorted(LINES))


def make(name: str, **settings: Any) -> Task:
    task: Task = tasks().make({"name": name, **settings})
    return task


def read(name: str, line: dict[str, Any]) -> Question | None:
    return make(name).read(Fields(line, "here"))


def example(name: str) -> Question:
    question = read(name, LINES[name])
    assert question is not None
    return question


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def likelihoods(*logps: float, first: str = "", **fields: Any) -> Likelihoods:
    count = len(logps)
    given = {"sizes": [4] * count, "exact": [True] * count, "impossible": [0] * count, **fields}
    return Likelihoods(logps=logps, first=first, **given)


def test_every_task_that_there_is_is_tested() -> None:
    assert set(tasks().parts) == set(LINES)


def test_choice() -> None:
    question = example("choice")
    assert question.prompt == "Question: Sky?\nAnswer:"
    assert question.options == (" red", " blue")
    assert (question.gold, question.solution) == (1, " blue")
    task = make("choice")
    # " red" has 4 bytes, " blue" 5: -4 / 4 is less than -4.5 / 5, though -4 is more than -4.5.
    per_byte = task.score_options(
        question, likelihoods(-4.0, -4.5, sizes=[4, 5], impossible=[0, 2])
    )
    assert (per_byte.answer, per_byte.right, per_byte.raw) == ("blue", True, False)
    assert (per_byte.nats, per_byte.bytes, per_byte.impossible) == (4.5, 5, 2)
    wrong = task.score_options(question, likelihoods(-3.0, -4.5, exact=[False, True]))
    assert (wrong.answer, wrong.right, wrong.raw, wrong.exact) == ("red", False, False, False)


def test_letter() -> None:
    question = example("letter")
    assert question.prompt == "Question: Sky?\nA. red\nB. blue\nAnswer:"
    assert (question.options, question.gold, question.solution) == ((" A", " B"), 1, " B")
    task = make("letter")
    right = task.score_options(question, likelihoods(-1.0, -2.0, first=" B"))
    assert (right.answer, right.right, right.raw, right.nats) == ("B", True, False, 2.0)
    other = task.score_options(question, likelihoods(-2.0, -1.0, first=" Because"))
    assert (other.answer, other.right, other.raw) == ("Because", False, True)


def test_number() -> None:
    question = example("number")
    assert (question.prompt, question.accepted) == ("Question: 3 + 4?\nAnswer:", ("7",))
    assert question.solution == f" {NUMBER['answer']}"
    task = make("number")
    assert task.grade_text(question, " so it is 7.0!").right
    assert not task.grade_text(question, "8").right
    empty = task.grade_text(question, "I do not know ")
    assert (empty.answer, empty.right, empty.length) == ("", False, 13)
    zero = read("number", {"question": "3 - 3?", "answer": "0"})
    assert zero is not None
    assert task.grade_text(zero, "0") == Outcome(answer="0", right=True, length=1)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("2 + 16 = 18\n#### 18 eggs in 3 boxes", "18"),
        ("1 #### 2 #### 3", "3"),
        ("it is 5\n####", "5"),
        ("$1,234,567.50.", "1234567.50"),
        ("from 10 to -3", "-3"),
        ("10-3", "3"),
        ("-12", "-12"),
        ("3.", "3"),
        ("1,", "1"),
        (".5", "5"),
        ("no number, none", None),
        ("####", None),
    ],
)
def test_numbers_are_found(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@given(st.text(), st.decimals(-(10**6), 10**6, places=2), st.text())
def test_a_marked_number_is_found_in_any_text(before: str, value: Decimal, after: str) -> None:
    text = f"{before}#### {value:,} x{after.replace('#', '')}"
    assert last_number(text) == value


@given(st.text())
def test_any_text_has_a_number_or_none(text: str) -> None:
    value = last_number(text)
    assert (value is None) == (not any(character.isdecimal() for character in text))


def test_answer() -> None:
    question = example("answer")
    assert question.accepted == ("Paris", "City of Light")
    assert question.solution == " Paris"
    task = make("answer")
    for text, right in ((" paris.", True), ("the City of  Light", True), ("Rome", False)):
        outcome = task.grade_text(question, text)
        assert outcome == Outcome(right=right, answer=text.strip(), length=len(text.strip()))
    single = read("answer", {"question": "?", "answer": "A"})
    assert single is not None
    assert single.accepted == ("A",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  U.S.A.", "usa"),
        ("An apple a day", "apple day"),
        ("there", "there"),
        ("¿Qué?", "¿qué"),
    ],
)
def test_answers_are_compared_in_plain_words(text: str, expected: str) -> None:
    assert normalize(text) == expected


@given(st.text())
def test_plain_words_have_no_case_no_punctuation_and_no_spaces_at_the_ends(text: str) -> None:
    words = normalize(text)
    assert words == words.strip()
    assert not set(words) & set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~\n\t")
    assert normalize(f"  {text}  ") == words


@given(st.text(min_size=1), st.floats(0.05, 0.95))
def test_a_text_is_cut_before_a_word_and_nothing_is_lost(text: str, share: float) -> None:
    if not text.strip():
        return
    question = make("text", share=share).read(Fields({"text": text}, "here"))
    if question is None:
        return
    (rest,) = question.options
    assert question.prompt + rest == text
    assert question.prompt == question.prompt.rstrip() != ""
    assert rest[0].isspace()
    assert rest.strip()


def test_text() -> None:
    assert example("text").prompt == "Once upon a time there was"
    assert example("text").options == (" a small town by the sea.",)
    for text in ("oneword", "word ", " word", "word   "):
        assert read("text", {"text": text}) is None
    outcome = make("text").score_options(example("text"), likelihoods(-6.0))
    assert (outcome.right, outcome.nats, outcome.bytes) == (None, 6.0, 4)


@every_task
def test_a_file_tells_its_task(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "file.jsonl", LINES[name])
    assert task_for(path).name == ("choice" if name == "letter" else name)
    assert list(next(read_lines(path)).data) == list(LINES[name])


@every_task
def test_missing_and_wrong_fields_are_named(tmp_path: Path, name: str) -> None:
    needed = ["text"] if name == "text" else ["question", "answer"]
    needed += ["A", "B"] if name in ("choice", "letter") else []
    for field in needed:
        lacking = {key: value for key, value in LINES[name].items() if key != field}
        path = write(tmp_path / "file.jsonl", LINES[name], {**lacking, f"{field}s": "x"})
        (error,) = read_questions(path, make(name)).broken
        assert error.startswith(f"{path}, line 2: there is no field '{field}'")
        only = write(tmp_path / "only.jsonl", {**lacking, f"{field}s": "x"})
        with pytest.raises(DataError, match=rf"only\.jsonl, line 1: there is no field '{field}'"):
            read_questions(only, make(name))
    wrong: list[Any] = [None, 7, {"a": 1}, "", "  ", [], [""], ["a", 2]]
    for field in set(needed) - {"A", "B"}:
        for value in wrong:
            path = write(tmp_path / "file.jsonl", {**LINES[name], field: value})
            with pytest.raises(DataError, match=rf"line 1: field '{field}' holds"):
                read_questions(path, make(name))


def test_a_misspelled_field_is_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "file.jsonl", {"question": "x", "answr": "1"})
    with pytest.raises(DataError, match="did you mean 'answr'"):
        read_questions(path, make("number"))
    with pytest.raises(DataError, match="line 1: no task has the fields question, answr"):
        task_for(path)


@pytest.mark.parametrize("name", ["choice", "letter"])
def test_lines_whose_answer_is_no_option_are_left_out(tmp_path: Path, name: str) -> None:
    lines = [CHOICE, *({**CHOICE, "answer": other} for other in ("C", "D", "b", "blue"))]
    lines.append({**CHOICE, "A": None})
    read_ = read_questions(write(tmp_path / "file.jsonl", *lines), make(name))
    assert len(read_.questions) == 1
    assert read_.skipped == [f"{tmp_path / 'file.jsonl'}, line {n}" for n in range(2, 7)]
    only = write(tmp_path / "none.jsonl", *lines[1:])
    with pytest.raises(DataError, match="no question left: 5 lines, 5 skipped"):
        read_questions(only, make(name))


def test_broken_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    good = json.dumps(NUMBER)
    bad = ['{"question": ', "[1]", '{"question": "x"}', '{"question": "x", "answer": "none"}']
    path.write_text("".join(f"{line}\n{good}\n" for line in bad))
    assert task_for(path).name == "number"  # the first line that can be read tells
    found = read_questions(path, make("number"))
    assert len(found.questions) == len(bad)
    assert [error.split(": ")[0] for error in found.broken] == [
        f"{path}, line {n}" for n in (1, 3, 5, 7)
    ]
    assert found.skipped == []
    path.write_text("".join(f"{line}\n" for line in bad))
    with pytest.raises(DataError, match=r"line 1: not JSON.*all 4 lines are broken"):
        read_questions(path, make("number"))
    path.write_text(f"{bad[0]}\n{bad[1]}\n")
    with pytest.raises(DataError, match="line 1: not JSON"):
        task_for(path)


def test_a_number_is_needed_for_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "file.jsonl", {"question": "x", "answer": "none"})
    with pytest.raises(DataError, match="line 1: field 'answer' holds no number: 'none'"):
        read_questions(path, make("number"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON: .* at column"),
        (b'{"a": 1}\n\n["a"]\n', "line 3: not a JSON object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b'{"a": "x \\ud83d"}', "line 1: field 'a' holds half a character"),
        (b'{"a": ["x \\ude00"]}', "line 1: field 'a' holds half a character"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.jsonl.*{message}"):
        list(read_lines(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(DataError, match=f"cannot read {path}"):
            task_for(path)


def test_lines_end_and_begin_as_other_systems_write_them(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\xe2\x80\xa8b"}\r\n{"text": "\\ud83d\\ude00"}')
    assert [fields.data["text"] for fields in read_lines(path)] == ["a\u2028b", "😀"]


@every_task
def test_worked_examples_are_left_out_of_the_questions(tmp_path: Path, name: str) -> None:
    field = "text" if name == "text" else "question"
    texts = [f"word {number} and some more words" for number in range(6)]
    path = write(tmp_path / "file.jsonl", *({**LINES[name], field: text} for text in texts))
    plain_ = read_questions(path, make(name)).questions
    shown = read_questions(path, make(name, shots=2), seed=0).questions
    # The same draw: the first two are shown, the rest is evaluated.
    worked = "".join(f"{q.prompt}{q.solution}\n\n" for q in plain_[:2])
    assert [q.prompt for q in shown] == [worked + q.prompt for q in plain_[2:]]
    assert [q.where for q in shown] == [q.where for q in plain_[2:]]
    assert len({q.key for q in [*plain_, *shown]}) == 10
    limited = read_questions(path, make(name, shots=2), limit=3, seed=0).questions
    assert limited == shown[:3]
    other = read_questions(path, make(name), seed=1).questions
    assert {q.where for q in other} == {q.where for q in plain_}
    assert other != plain_
    with pytest.raises(DataError, match="no question left: 6 lines, 0 skipped, 6 few-shot"):
        read_questions(path, make(name, shots=6))
