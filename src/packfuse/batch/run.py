"""A batch from its file of requests to its file of answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from packfuse.batch.lines import BatchLine, read_batch
from packfuse.batch.output import BatchOutput
from packfuse.errors import DataError
from packfuse.progress import ProgressCallback

Answers = Callable[[Sequence[BatchLine]], Generator[dict[str, Any]]]
"""Answers lines, in any order; see `answered_by`."""


class Problem(BaseModel):
    """A line that has an error for an answer.

    Attributes:
        line: Its number in the input, from 1.
        custom_id: Its id.
        message: The error.
    """

    line: int
    custom_id: str
    message: str


class Summary(BaseModel):
    """How a batch went.

    Attributes:
        lines: Number of requests in the input.
        answered: Lines with an answer.
        failed: Lines with an error for an answer.
        resumed: Lines of both kinds that were in the output before.
        repaired: Whether a part of a line, left by a killed process, was removed from the output.
        prompt_tokens: Tokens of the prompts of this run.
        completion_tokens: Tokens of the answers of this run.
        seconds: Time of this run, with the loading of the pack.
        problems: The errors, in the order of the input.
    """

    lines: int
    answered: int
    failed: int
    resumed: int
    repaired: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    problems: list[Problem]


def run_batch(
    source: Path,
    target: Path,
    answers: Answers,
    *,
    max_tokens: int,
    resume: bool = False,
    step: ProgressCallback | None = None,
) -> Summary:
    """Answer the requests of a file, and write one line an answer.

    A line is written as soon as its answer is complete. So a process may be killed at any time:
    with `resume`, the next one goes on, and every line has exactly one answer at the end.

    Args:
        source: The requests; see `read_batch`.
        target: The answers; see `BatchOutput`.
        answers: Answers lines; called once, unless all lines have their answers.
        max_tokens: Most tokens of an answer, if a line does not say.
        resume: Whether `target` may have answers already.
        step: Called with (lines done, lines in total).

    Raises:
        DataError: for files that cannot be used, and an output of other requests or another pack.
    """
    started = time.monotonic()
    if source.resolve() == target.resolve():
        raise DataError(f"{source} is input and output", hint="name another output file")
    lines = read_batch(source, max_tokens)
    with BatchOutput(target, lines, resume=resume) as output:
        before = set(output.answers)
        left = [line for line in lines if line.custom_id not in before]
        if step is not None:
            step(len(before), len(lines))
        if left:
            with closing(answers(left)) as found:
                for answer in found:
                    output.add(answer)
                    if step is not None:
                        step(len(output.answers), len(lines))
    return _summary(lines, output, before, time.monotonic() - started)


def _summary(
    lines: Sequence[BatchLine], output: BatchOutput, before: set[str], seconds: float
) -> Summary:
    found = output.answers
    missing = [line.custom_id for line in lines if line.custom_id not in found]
    if missing:
        raise DataError(
            f"{len(missing)} lines have no answer, the first one is {missing[0]!r}",
            hint="--resume asks for them again",
        )
    problems = [
        Problem(line=line.number, custom_id=line.custom_id, message=found[line.custom_id].problem)
        for line in lines
        if found[line.custom_id].problem
    ]
    new = [answer.tokens for key, answer in found.items() if key not in before]
    return Summary(
        lines=len(lines),
        answered=len(lines) - len(problems),
        failed=len(problems),
        resumed=len(before),
        repaired=output.repaired,
        prompt_tokens=sum(read for read, _ in new),
        completion_tokens=sum(written for _, written in new),
        seconds=round(seconds, 3),
        problems=problems,
    )
