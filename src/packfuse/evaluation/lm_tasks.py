"""Evaluation on tasks of lm-eval: each member alone and the pack, on the same documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packfuse.errors import ConfigError, DataError, MemberError, PromptError
from packfuse.evaluation.journal import Journal
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.reports.report import Evaluation
from packfuse.evaluation.reports.summary import summarize
from packfuse.evaluation.setting import Setting
from packfuse.evaluation.systems.choice import singles, under
from packfuse.extras import install_command
from packfuse.pack import Pack
from packfuse.registry import nearest

_METRICS = ("acc_norm", "exact_match", "acc", "em")
"""Per-document metrics that grade an answer as right or wrong; the first that a task has counts."""


def evaluate_tasks(
    pack: Pack,
    names: Sequence[str],
    settings: Sequence[Setting] | None = None,
    *,
    journal: Journal,
    limit: int | None = None,
    seed: int = 0,
    include: Path | None = None,
) -> list[Evaluation]:
    """Run lm-eval's tasks on each member alone and on the pack.

    Args:
        pack: The pack.
        names: Names of tasks or groups.
        settings: Settings of the pack; its own by default.
        journal: Keeps every result; known results are not computed again.
        limit: Largest number of documents per task.
        seed: Seed of the bootstrap intervals.
        include: Folder of further task files.

    Returns:
        One evaluation per task.

    Raises:
        ConfigError: for an unknown task, or if lm-eval is not installed.
        DataError: if the data of a task is not available.
        MemberError: if every system failed.
    """
    manager = _manager(names, include)
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]

    from packfuse.evaluation.harness import PackLM

    chosen = list(settings or [Setting.of(pack)])
    systems = {own.names[0]: own for own in singles(pack)}
    systems |= {setting.label: under(pack, setting) for setting in chosen}
    results: dict[str, dict[str, dict[Question, Outcome]]] = {}
    failed: dict[str, str] = {}
    for label, system in systems.items():
        model = PackLM(system, journal=journal)
        try:
            output = simple_evaluate(
                model=model,
                tasks=list(names),
                task_manager=manager,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
            )
        except (MemberError, PromptError) as error:
            failed[label] = str(error)
            continue
        for task, samples in output["samples"].items():
            results.setdefault(task, {})[label] = dict(_outcomes(task, samples))
    if not results:
        raise MemberError(f"every system failed in lm-eval: {next(iter(failed.values()))}")
    return [
        summarize(
            task,
            {"name": "lm-eval", "task": task},
            "accuracy",
            {label: outcomes.get(label, {}) for label in systems},
            members=pack.names,
            settings={setting.label: setting.dump() for setting in chosen},
            failed=failed,
            questions=max(map(len, outcomes.values())),
            seed=seed,
        )
        for task, outcomes in results.items()
    ]


def _manager(names: Sequence[str], include: Path | None) -> Any:
    """lm-eval's task manager, after a check that all named tasks can be loaded."""
    try:
        from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "tasks of lm-eval need the package lm-eval", hint=install_command("eval")
        ) from error
    manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(f"lm-eval has no task {name!r}", hint=_near(name, manager.all_tasks))
        try:
            manager.load([name])
        except Exception as error:
            # The task's data source may raise any error: no network, a missing file.
            raise DataError(
                f"the data of task {name!r} cannot be had: {error}",
                hint="go online once, so that the data is cached, or use a JSON Lines file",
            ) from error
    return manager


def _near(name: str, known: Sequence[str]) -> str:
    """A hint with the most similar of the known names."""
    return nearest(name, known) or "`lm-eval ls tasks` lists them"


def _outcomes(task: str, samples: Sequence[dict[str, Any]]) -> Iterator[tuple[Question, Outcome]]:
    for sample in samples:
        question = Question(f"{task}, document {sample['doc_id']}", sample["doc_hash"])
        name = next((name for name in _METRICS if name in sample["metrics"]), None)
        nats, size = _loss(sample)
        yield (
            question,
            Outcome(
                answer=str(sample["filtered_resps"][0])[:200] if len(sample["resps"]) == 1 else "",
                right=None if name is None else bool(sample[name]),
                raw=bool(sample["acc"]) if name == "acc_norm" and "acc" in sample else None,
                nats=nats,
                bytes=size,
            ),
        )


def _loss(sample: dict[str, Any]) -> tuple[float | None, int]:
    """Negative log-likelihood of the right text in nats and its bytes; None and 0 if not scored."""
    if "bits_per_byte" in sample["metrics"]:
        logp, size = sample["bits_per_byte"]
        return -float(logp), int(size)
    target, requests = sample["target"], sample["arguments"]
    if isinstance(target, int) and len(requests) > 1 and target < len(requests):
        return -float(sample["filtered_resps"][target][0]), len(requests[target][1].encode())
    return None, 0
