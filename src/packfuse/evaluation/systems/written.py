"""Systems that write answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from packfuse.errors import PromptError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.setting import Samples
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.tasks.base import Task
from packfuse.generation.output.result import Answer
from packfuse.pack import Pack
from packfuse.scheduler.task import Task as WorkTask

BATCH = 64
"""Questions whose answers are generated together: as many at a time as the pack's `max_rows`."""


class GeneratingSystem(System):
    """Generates answers under one setting; those of a batch are decoded together."""

    batch = BATCH

    def __init__(self, pack: Pack, label: str, **arguments: Any) -> None:
        """`arguments` are passed to `Pack.generate`."""
        self.pack, self.labels, self.arguments = pack, [label], arguments
        self.identity = {
            "members": pack.identity["members"],
            "written": pack.settings.changes_answers,
            "arguments": {name: str(value) for name, value in arguments.items()},
        }

    def run(
        self, task: Task, questions: Sequence[Question]
    ) -> Iterator[dict[str, Outcome] | PromptError]:
        """Generate the answers to all questions at the same time; see `System.run`."""
        started = time.perf_counter()
        waiting = [self._task(task, question) for question in questions]
        written = [one for one in waiting if not isinstance(one, PromptError)]
        self.pack.scheduler.submit(*written)
        try:
            for question, one in zip(questions, waiting, strict=True):
                answers = one if isinstance(one, PromptError) else _result(one)
                if isinstance(answers, PromptError):
                    yield answers
                    continue
                now = time.perf_counter()
                outcome = self._outcome(task, question, answers)
                yield {self.labels[0]: outcome.model_copy(update={"seconds": now - started})}
                started = now
        finally:
            for rest in written:
                rest.cancel.set()

    def _task(self, task: Task, question: Question) -> WorkTask[list[Answer]] | PromptError:
        """The work of one question."""
        arguments = {"max_new_tokens": task.max_tokens, "stop": task.stop or None, **self.arguments}
        try:
            return self.pack.task(self.pack.request(question.prompt, arguments))
        except PromptError as error:
            return error

    def _outcome(self, task: Task, question: Question, answers: Sequence[Answer]) -> Outcome:
        """The outcome of the answers to one question, without its time."""
        chosen = self._chosen(task, answers)
        record = chosen.record
        usage = record.usage
        read = usage.prompt_tokens_by_member
        encoded = [
            len(member.vocabulary.encode(answer.text))
            for member in self.pack.members
            if read.get(member.name)
            for answer in answers
        ]
        return task.grade_text(question, chosen.text).model_copy(
            update={
                "tokens": usage.prompt_tokens
                + sum(answer.record.usage.completion_tokens for answer in answers),
                "member_tokens": sum(read.values()) + sum(encoded),
                "fused": record.fused,
                "reference": record.reference,
                "weights": record.weights,
                "prompt_bits": record.bits_per_byte,
            }
        )

    def _chosen(self, task: Task, answers: Sequence[Answer]) -> Answer:
        """The answer that is graded."""
        return answers[0]


class SampledSystem(GeneratingSystem):
    """Samples several answers of one pack, and takes the one that most of them agree with."""

    def __init__(self, pack: Pack, samples: Samples, seed: int) -> None:
        """`pack` is usually one member alone."""
        label = f"{pack.names[0]} · {samples.count} samples, majority"
        super().__init__(
            pack,
            label,
            do_sample=True,
            temperature=samples.temperature,
            num_return_sequences=samples.count,
            seed=seed,
        )

    def _chosen(self, task: Task, answers: Sequence[Answer]) -> Answer:
        """The first answer of the largest group that says the same."""
        ballots = [task.ballot(answer.text) for answer in answers]
        counts = Counter(filter(None, ballots)) or Counter(ballots)
        return answers[ballots.index(counts.most_common(1)[0][0])]


def _result(work: WorkTask[list[Answer]]) -> list[Answer] | PromptError:
    """The answers, once they are there."""
    try:
        return work.future.result()
    except PromptError as error:
        return error
