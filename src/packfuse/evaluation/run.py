"""Runs every system on every question, and keeps each outcome as soon as it is known."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packfuse.errors import ConfigError, DataError, MemberError, PromptError
from packfuse.evaluation.files import read_lines
from packfuse.evaluation.journal import Journal, digest
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.report import Evaluation
from packfuse.evaluation.reports.summary import summarize
from packfuse.evaluation.setting import Samples, Setting, every_method
from packfuse.evaluation.systems.base import System
from packfuse.evaluation.systems.choice import singles, systems
from packfuse.evaluation.systems.written import SampledSystem
from packfuse.evaluation.tasks import tasks
from packfuse.evaluation.tasks.base import Task
from packfuse.pack import Pack
from packfuse.progress import ProgressCallback


@dataclass(slots=True)
class QuestionSet:
    """The questions of one file.

    Attributes:
        source: The file.
        questions: The questions, in the order of evaluation.
        skipped: Lines without a usable question.
        broken: Errors of lines that could not be read.
    """

    source: str
    questions: list[Question]
    skipped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def task_for(path: Path) -> Task:
    """The task that fits the fields of a file's first line that can be read.

    Raises:
        DataError: if the file or all of its lines cannot be read, or no task fits.
    """
    broken: list[str] = []
    first = next(read_lines(path, broken), None)
    if first is None:
        raise DataError(broken[0])
    for part in tasks().parts.values():
        if part.fits(list(first.data), first.data.get("answer")):
            task: Task = part()
            return task
    raise DataError(
        f"{first.where}: no task has the fields {', '.join(first.data)}",
        hint=f"name one of {', '.join(tasks().parts)}; the README lists the fields of each",
    )


def read_questions(path: Path, task: Task, limit: int | None = None, seed: int = 0) -> QuestionSet:
    """Questions of a file in random order, each after the task's few-shot examples.

    Lines that cannot be read are left out, and named in the result, if there are others.

    Args:
        path: The file.
        task: The task that reads its lines.
        limit: Largest number of questions.
        seed: Seed of the order.

    Raises:
        DataError: if no line can be read, with the file, the line and the field; or if no question
            is left.
    """
    lines, broken = _read_lines(path, task)
    questions = [question for question, _ in lines if question is not None]
    skipped = [where for question, where in lines if question is None]
    random.Random(seed).shuffle(questions)  # noqa: S311 - a choice of questions, no secret
    examples, rest = questions[: task.shots], questions[task.shots :]
    if not rest:
        raise DataError(
            f"{path} has no question left: {len(lines)} lines, {len(skipped)} skipped, "
            f"{len(examples)} few-shot examples"
        )
    prefix = task.few_shot_prefix(examples)
    chosen = rest if limit is None else rest[:limit]
    prefixed = [question.with_prefix(prefix) for question in chosen]
    return QuestionSet(str(path), prefixed, skipped, broken)


def _read_lines(path: Path, task: Task) -> tuple[list[tuple[Question | None, str]], list[str]]:
    """Each line's question, if it has one, with its place; and the errors of the other lines."""
    found: list[tuple[Question | None, str]] = []
    broken: list[str] = []
    for fields in read_lines(path, broken):
        try:
            found.append((task.read(fields), fields.where))
        except DataError as error:
            broken.append(str(error))
    if not found:
        more = f" (all {len(broken)} lines are broken)" if len(broken) > 1 else ""
        raise DataError(broken[0] + more)
    return found, broken


def evaluate(
    pack: Pack,
    questions: QuestionSet,
    task: Task,
    settings: Sequence[Setting] | None = None,
    *,
    journal: Journal,
    samples: Samples | None = None,
    seed: int = 0,
    step: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluate each member alone and the pack under `settings` on the same questions.

    A system whose member fails stops; its earlier outcomes count, and the other systems continue.

    Args:
        pack: The pack; its lock is held during the evaluation.
        questions: The questions.
        task: The task of the questions.
        settings: By default every rule with every weighting if options are scored, and the pack's
            own setting if answers are generated.
        journal: Keeps the outcomes; known outcomes are not computed again.
        samples: Also evaluate the majority of so many samples of the best member, if answers are
            generated; None to sample nothing.
        seed: Seed of the bootstrap intervals and of the samples.
        step: Called with (questions done, questions in total) over all systems.

    Returns:
        The figures. `ReportRow.failed` names the error of a system that stopped.

    Raises:
        ConfigError: for samples of a task whose options are scored.
    """
    if samples and not task.generates:
        raise ConfigError(
            f"samples have no effect on the task {task.name!r}, whose options are scored",
            hint="leave them out",
        )
    own = Setting.of(pack)
    chosen = list(settings or ([own] if task.generates else every_method(own)))
    parts = systems(pack, task, chosen)
    count = len(parts) + bool(samples)
    size = len(questions.questions)
    outcomes: dict[str, dict[Question, Outcome]] = {}
    failed: dict[str, str] = {}
    unread: dict[str, str] = {}

    def run(system: System, number: int) -> None:
        progress = step and (lambda done, _: step(number * size + done, count * size))
        result = run_system(system, task, questions.questions, journal, progress)
        outcomes.update(result.outcomes)
        unread.update(result.unread)
        if result.failed:
            failed.update(dict.fromkeys(system.labels, result.failed))

    sampled: SampledSystem | None = None
    with pack.lock:
        for number, system in enumerate(parts):
            run(system, number)
        if samples:
            best = _best_writer(pack.names, outcomes, failed)
            sampled = SampledSystem(singles(pack)[pack.names.index(best)], samples, seed)
            run(sampled, len(parts))
    settled = [setting.label for setting in chosen]
    labels = dict.fromkeys([*pack.names, *(sampled.labels if sampled else ()), *settled])
    return summarize(
        questions.source,
        tasks().dump(task),
        task.metric,
        {label: outcomes[label] for label in labels},
        members=pack.names,
        settings={setting.label: setting.dump() for setting in chosen},
        failed=failed,
        skipped=questions.skipped,
        broken=questions.broken,
        unread=unread,
        samples={sampled.labels[0]: samples.count} if sampled and samples else None,
        questions=size,
        seed=seed,
    )


def _best_writer(
    names: Sequence[str],
    outcomes: Mapping[str, Mapping[Question, Outcome]],
    failed: Mapping[str, str],
) -> str:
    """The member with the highest accuracy; one that stopped early counts only if all did."""

    def accuracy(name: str) -> float:
        own = outcomes[name].values()
        return sum(bool(outcome.right) for outcome in own) / max(1, len(own))

    return max([name for name in names if name not in failed] or names, key=accuracy)


@dataclass(slots=True)
class SystemOutcomes:
    """The outcomes of one system.

    Attributes:
        outcomes: Outcomes by label and question.
        unread: By location, the error of each question that a member could not read.
        failed: The error at which the system stopped; None if it finished.
    """

    outcomes: dict[str, dict[Question, Outcome]]
    unread: dict[str, str] = field(default_factory=dict)
    failed: str | None = None


def run_system(
    system: System,
    task: Task,
    questions: Sequence[Question],
    journal: Journal,
    progress: ProgressCallback | None = None,
) -> SystemOutcomes:
    """Run one system on the questions; outcomes that the journal has are not computed again.

    Args:
        system: The system.
        task: The task of the questions.
        questions: The questions, in order.
        journal: Keeps the outcomes.
        progress: Called with (questions done, questions in total).
    """
    result = SystemOutcomes({label: {} for label in system.labels})
    try:
        pairs = _outcomes(system, task, questions, journal, result.unread)
        for done, (question, outcomes) in enumerate(pairs):
            for label, outcome in (outcomes or {}).items():
                result.outcomes[label][question] = outcome
            if progress:
                progress(done + 1, len(questions))
    except MemberError as error:
        result.failed = str(error)
    # Outcomes of the journal came first; the order of the figures must not depend on that.
    result.outcomes = {
        label: {question: known[question] for question in questions if question in known}
        for label, known in result.outcomes.items()
    }
    return result


def _outcomes(
    system: System,
    task: Task,
    questions: Sequence[Question],
    journal: Journal,
    unread: dict[str, str],
) -> Iterator[tuple[Question, dict[str, Outcome] | None]]:
    """Outcomes by question: those of the journal first, then new ones in batches."""
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
        results = system.run(task, [question for question, _ in batch])
        for (question, key), outcomes in zip(batch, results, strict=True):
            if isinstance(outcomes, PromptError):
                unread[question.where] = str(outcomes)
                yield question, None
                continue
            journal.add(key, {label: _dump(outcome) for label, outcome in outcomes.items()})
            yield question, outcomes


def _dump(outcome: Outcome) -> dict[str, Any]:
    return outcome.model_dump(mode="json", exclude_defaults=True)
