"""Runs every system on every question, and keeps what is known when it is known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packfuse.errors import DataError, MemberError, PromptError
from packfuse.evaluation.files import read_lines
from packfuse.evaluation.journal import Journal, digest
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.report import Evaluation, summarize
from packfuse.evaluation.setting import Setting, every_method
from packfuse.evaluation.systems import System, systems
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.base import Task
from packfuse.pack import Pack
from packfuse.progress import ProgressCallback


@dataclass(slots=True)
class Asked:
    """The questions of one file.

    Attributes:
        source: The file.
        questions: In the order in which they are asked.
        skipped: Lines that could not be asked.
    """

    source: str
    questions: list[Question]
    skipped: list[str] = field(default_factory=list)


def task_for(path: Path) -> Task:
    """The task whose fields a file has.

    Raises:
        DataError: if there is none.
    """
    first = next(read_lines(path))
    for part in tasks().parts.values():
        if part.fits(list(first.data), first.data.get("answer")):
            made: Task = part()
            return made
    raise DataError(
        f"{first.where}: no task has the fields {', '.join(first.data)}",
        hint=f"name one of {', '.join(tasks().parts)}; docs/evaluation.md says what each needs",
    )


def read_questions(path: Path, task: Task, limit: int | None = None, seed: int = 0) -> Asked:
    """Questions from a file, drawn by `seed`, each after the task's worked examples.

    Raises:
        DataError: naming the file, the line and the field; or if too few questions are left.
    """
    made = [(task.read(fields), fields.where) for fields in read_lines(path)]
    questions = [question for question, _ in made if question is not None]
    skipped = [where for question, where in made if question is None]
    random.Random(seed).shuffle(questions)  # noqa: S311 - a choice of questions, no secret
    shown, asked = questions[: task.shots], questions[task.shots :]
    if not asked:
        raise DataError(
            f"{path} has no question left to ask: {len(made)} lines, {len(skipped)} skipped, "
            f"{len(shown)} worked examples"
        )
    worked = task.worked(shown)
    chosen = asked if limit is None else asked[:limit]
    return Asked(str(path), [question.after(worked) for question in chosen], skipped)


def evaluate(
    pack: Pack,
    asked: Asked,
    task: Task,
    settings: Sequence[Setting] | None = None,
    *,
    journal: Journal,
    seed: int = 0,
    step: ProgressCallback | None = None,
) -> Evaluation:
    """Each member alone and the pack under `settings`, on the same questions.

    A system whose member fails stops there; what it answered before counts, and the others go on.

    Args:
        pack: The pack; its lock is held while it runs.
        asked: The questions.
        task: Their kind.
        settings: By default every rule with every weighting where options are scored, and the
            pack's own where answers are written.
        journal: Where outcomes are kept, and found again.
        seed: Of the bootstrap intervals.
        step: Called with (questions done, questions in total) over all systems.

    Returns:
        The figures. `Evaluation.rows` tells of systems that failed.
    """
    own = Setting.of(pack)
    chosen = list(settings or ([own] if task.generates else every_method(own)))
    parts = systems(pack, task, chosen)
    size = len(asked.questions)
    answered: dict[str, dict[Question, Outcome]] = {}
    failed: dict[str, str] = {}
    unread: dict[str, str] = {}
    with pack.lock:
        for number, system in enumerate(parts):
            found = ask(system, task, asked.questions, journal, _tell(step, number, size, parts))
            answered.update(found.outcomes)
            unread.update(found.unread)
            if found.failed:
                failed.update(dict.fromkeys(system.labels, found.failed))
    labels = dict.fromkeys([*pack.names, *(setting.label for setting in chosen)])
    return summarize(
        asked.source,
        tasks().dump(task),
        task.verdict,
        {label: answered[label] for label in labels},
        members=pack.names,
        settings={setting.label: setting.dump() for setting in chosen},
        failed=failed,
        skipped=asked.skipped,
        unread=unread,
        questions=size,
        seed=seed,
    )


@dataclass(slots=True)
class Found:
    """What one system made of the questions.

    Attributes:
        outcomes: By label, by question.
        unread: Questions that it could not read, with the reason, by where they stand.
        failed: Why it stopped before the end, if it did.
    """

    outcomes: dict[str, dict[Question, Outcome]]
    unread: dict[str, str] = field(default_factory=dict)
    failed: str | None = None


def ask(
    system: System,
    task: Task,
    questions: Sequence[Question],
    journal: Journal,
    tell: ProgressCallback | None = None,
) -> Found:
    """Put every question to one system, but for those it has answered before.

    Args:
        system: Who is asked.
        task: The kind of the questions.
        questions: In order.
        journal: Where outcomes are kept, and found again.
        tell: Called with (questions done, questions in total).
    """
    found = Found({label: {} for label in system.labels})
    try:
        for done, (question, answers) in enumerate(_each(system, task, questions, journal, found)):
            for label, outcome in (answers or {}).items():
                found.outcomes[label][question] = outcome
            if tell:
                tell(done + 1, len(questions))
    except MemberError as error:
        found.failed = str(error)
    # Those known before came first: figures shall not depend on where an interruption was.
    found.outcomes = {
        label: {question: known[question] for question in questions if question in known}
        for label, known in found.outcomes.items()
    }
    return found


def _tell(
    step: ProgressCallback | None, number: int, size: int, parts: Sequence[System]
) -> ProgressCallback | None:
    """Progress of one system as progress of all."""
    return step and (lambda done, _: step(number * size + done, len(parts) * size))


def _each(
    system: System,
    task: Task,
    questions: Sequence[Question],
    journal: Journal,
    found: Found,
) -> Iterator[tuple[Question, dict[str, Outcome] | None]]:
    """Outcomes by question: those known before, then the others, in batches."""
    fresh: list[tuple[Question, str]] = []
    for question in questions:
        key = digest(system.key, task.name, task.model_dump_json(), question.key)
        known = journal.get(key)
        if known is None:
            fresh.append((question, key))
        else:
            yield question, {label: Outcome(**fields) for label, fields in known.items()}
    for start in range(0, len(fresh), system.batch):
        batch = fresh[start : start + system.batch]
        answers = _answers(system, task, [question for question, _ in batch], found.unread)
        for (_, key), said in zip(batch, answers, strict=True):
            if said is not None:
                journal.add(key, {label: _plain(outcome) for label, outcome in said.items()})
        yield from zip((question for question, _ in batch), answers, strict=True)


def _plain(outcome: Outcome) -> dict[str, Any]:
    return outcome.model_dump(mode="json", exclude_defaults=True)


def _answers(
    system: System, task: Task, batch: Sequence[Question], unread: dict[str, str]
) -> list[dict[str, Outcome] | None]:
    """A batch; if it holds questions that cannot be read, one question after the other."""
    try:
        return list(system.run(task, batch))
    except PromptError as error:
        if len(batch) == 1:
            unread[batch[0].where] = str(error)
            return [None]
    return [_answers(system, task, [question], unread)[0] for question in batch]
