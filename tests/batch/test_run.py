"""A batch in this process: answers are those of each call alone, none lost or doubled."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse import Pack
from packfuse.batch.lines import BatchLine
from packfuse.batch.run import Summary, run_batch
from packfuse.batch.worker import Worker
from packfuse.errors import DataError, MemberError
from packfuse.server.packs import fingerprint
from packfuse.tools import Turn
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack
from tests.support.steps import settle

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, max_rows=3, max_waiting=4)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answers_of(path: Path) -> dict[str, Any]:
    """The answers in a file by id; each once."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    counts = Counter(one["custom_id"] for one in found)
    assert set(counts.values()) <= {1}
    return {one["custom_id"]: one for one in found}


def run(pack: Pack, source: Path, target: Path, **more: Any) -> Summary:
    return run_batch(source, target, Worker({"tiny": pack}).stream, max_tokens=5, **more)


def test_answers_are_those_of_each_call_alone(pack: Pack, tmp_path: Path) -> None:
    sampled = {"temperature": 0.8, "seed": 11, "top_k": 9}
    lines: list[dict[str, Any]] = [
        {"prompt": "hello the", "max_tokens": 7},
        {"prompt": "true: the hello " * 5, **sampled},
        {"messages": MESSAGES, "weights": {"long": 0.25, "short": 0.75}},
        {"prompt": ["he", "lo", "hello", "the ", "true", "long", "日本"], "n": 2, **sampled},
        {"custom_id": "mine", "url": "/v1/completions", "body": {"prompt": "hello"}},
        {"custom_id": "chat", "url": "/v1/chat/completions", "body": {"messages": MESSAGES}},
    ]
    steps: list[tuple[int, int]] = []
    source, target = write(tmp_path / "in.jsonl", *lines), tmp_path / "new" / "out.jsonl"
    summary = run(pack, source, target, step=lambda *step: steps.append(step))
    assert (summary.answered, summary.failed, summary.resumed) == (6, 0, 0)
    assert steps == [(done, 6) for done in range(7)]
    found = answers_of(target)

    def texts(key: str) -> list[str]:
        response = found[key]["response"]
        assert (response["status_code"], found[key]["error"]) == (200, None)
        choices = response["body"]["choices"]
        return [c["text"] if "text" in c else c["message"]["content"] for c in choices]

    generate = pack.generate
    assert texts("line-1") == [generate("hello the", max_new_tokens=7).text]
    assert texts("line-2") == [generate("true: the hello " * 5, max_new_tokens=5, **sampled).text]
    chat = Turn(pack, MESSAGES, weights={"long": 0.25, "short": 0.75}, max_new_tokens=5)
    assert texts("line-3") == [chat.answer().text]
    assert texts("line-4") == [
        answer.text
        for prompt in lines[3]["prompt"]
        for answer in generate(prompt, max_new_tokens=5, num_return_sequences=2, **sampled)
    ]
    assert texts("mine") == [generate("hello", max_new_tokens=16).text]
    record = found["chat"]["response"]["body"]["fusion"]
    alone = generate(MESSAGES, max_new_tokens=5).record
    assert record["weights"] == pytest.approx(alone.weights)
    assert record["usage"]["completion_tokens"] == alone.usage.completion_tokens
    written = sum(one["response"]["body"]["usage"]["completion_tokens"] for one in found.values())
    assert summary.completion_tokens == written


def test_an_error_of_a_line_is_its_answer(pack: Pack, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    write(
        source,
        {"prompt": "hello"},
        {"prompt": "hello", "temprature": 1},
        {"prompt": "hello", "stream": True},
        {"prompt": "hello", "model": "other"},
        {"prompt": "long " * 600},
        {"messages": [{"role": "tool", "content": "x"}]},
    )
    with source.open("a") as file:
        file.write("{broken\n")
    summary = run(pack, source, tmp_path / "out.jsonl")
    assert (summary.lines, summary.answered, summary.failed) == (7, 1, 6)
    assert [problem.line for problem in summary.problems] == [2, 3, 4, 5, 6, 7]
    found = answers_of(tmp_path / "out.jsonl")
    statuses = [found[f"line-{number}"]["response"]["status_code"] for number in range(1, 7)]
    assert statuses == [200, 400, 400, 404, 400, 400]
    error = found["line-2"]["response"]["body"]["error"]
    assert error["param"] == "temprature"
    assert error["message"] == summary.problems[0].message
    assert found["line-7"]["response"] is None
    assert found["line-7"]["error"]["code"] == "invalid_line"
    assert "not JSON" in found["line-7"]["error"]["message"]


@pytest.fixture(scope="module")
def whole(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A file of requests, and all of its answers."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [{"prompt": f"hello {number}", "max_tokens": 2} for number in range(5)]
    source = write(folder / "in.jsonl", *lines, {"prompt": "a", "n": 2})
    run(pack, source, folder / "out.jsonl")
    return source, (folder / "out.jsonl").read_bytes()


def texts_of(path: Path) -> dict[str, Any]:
    """What does not depend on the time, by id."""
    return {
        key: (one["id"], (one["response"] or {})["body"].get("choices"), one["error"])
        for key, one in answers_of(path).items()
    }


@given(share=st.floats(0, 1))
def test_a_batch_cut_off_anywhere_goes_on(
    pack: Pack,
    whole: tuple[Path, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    share: float,
) -> None:
    source, content = whole
    folder = tmp_path_factory.mktemp("cut")
    size = round(share * len(content))
    kept = content[:size].count(b"\n")
    (folder / "all.jsonl").write_bytes(content)
    (folder / "out.jsonl").write_bytes(content[:size])
    summary = run(pack, source, folder / "out.jsonl", resume=True)
    assert summary.resumed == kept
    assert summary.repaired == (not content[:size].endswith(b"\n") and size > 0)
    assert texts_of(folder / "out.jsonl") == texts_of(folder / "all.jsonl")
    assert (summary.answered, summary.failed) == (5, 1)


def test_what_is_complete_needs_no_pack(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    source, content = whole
    target = tmp_path / "out.jsonl"
    target.write_bytes(content)

    def none(lines: Sequence[BatchLine]) -> Generator[dict[str, Any]]:
        raise AssertionError(lines)

    summary = run_batch(source, target, none, max_tokens=5, resume=True)
    assert (summary.resumed, summary.completion_tokens) == (6, 0)
    assert target.read_bytes() == content


def test_an_output_that_is_there_is_left_as_it_is(
    pack: Pack, whole: tuple[Path, bytes], tmp_path: Path
) -> None:
    source, content = whole
    target = tmp_path / "out.jsonl"
    others = write(tmp_path / "others.jsonl", {"prompt": "another"})

    def refused(given: Path, message: str, before: bytes, **more: Any) -> None:
        target.write_bytes(before)
        with pytest.raises(DataError, match=message):
            run(pack, given, target, **more)
        assert target.read_bytes() == before

    refused(source, "is there already .*--resume goes on", content)
    refused(others, "another request than the input has as 'line-", content, resume=True)
    refused(source, r"out\.jsonl, line 1: not an answer of a batch", b'{"a": 1}\n', resume=True)
    refused(source, r"out\.jsonl, line 1: not an answer of a batch", b"no newline", resume=True)
    first = content[: content.index(b"\n") + 1]
    refused(source, "has two answers to 'line-", first * 2, resume=True)
    with pytest.raises(DataError, match="another request"):
        run_batch(source, target, Worker({"tiny": pack}).stream, max_tokens=6, resume=True)
    with pytest.raises(DataError, match="is input and output"):
        run(pack, source, source)


def test_answers_of_two_packs_are_not_mixed(
    pack: Pack, whole: tuple[Path, bytes], tmp_path: Path
) -> None:
    source, content = whole
    target = tmp_path / "out.jsonl"
    half = b"".join(content.splitlines(keepends=True)[:3])
    target.write_bytes(half)
    other = small_pack(template=TEMPLATE, fusion="mixture")
    with pytest.raises(DataError, match="the answers so far are of another pack"):
        run(other, source, target, resume=True)
    assert target.read_bytes() == half
    settle()
    assert (other.scheduler.running, other.scheduler.waiting) == (0, 0)


def test_a_pack_that_is_loaded_again_is_the_same(pack: Pack) -> None:
    again = small_pack(template=TEMPLATE, max_rows=7)
    assert fingerprint(again) == fingerprint(pack)
    assert fingerprint(small_pack(template=TEMPLATE, fusion="mixture")) != fingerprint(pack)
    with torch.no_grad():
        again.members[1].model.get_input_embeddings().weight += 1.0
    again.members[1].refresh()
    assert fingerprint(again) != fingerprint(pack)


def test_lines_that_a_member_failed_on_are_asked_again(tmp_path: Path) -> None:
    pack = small_pack(template=TEMPLATE)
    source = write(tmp_path / "in.jsonl", *({"prompt": f"hello {n}"} for n in range(4)))
    target = tmp_path / "out.jsonl"
    member, read, calls = pack.members[1], pack.members[1].read, threading.Semaphore(2)

    def failing(*arguments: Any, **named: Any) -> Any:
        if not calls.acquire(blocking=False):
            raise MemberError("the member 'short' is gone")
        return read(*arguments, **named)

    member.read = failing  # type: ignore[method-assign]
    broken = run(pack, source, target)
    assert broken.failed > 0
    failed = {
        key for key, one in answers_of(target).items() if one["response"]["status_code"] != 200
    }
    assert len(failed) == broken.failed
    assert "the member 'short' is gone" in broken.problems[0].message
    member.read = read  # type: ignore[method-assign]
    again = run(pack, source, target, resume=True)
    assert (again.resumed, again.answered, again.failed) == (4 - broken.failed, 4, 0)
    assert len(answers_of(target)) == 4
