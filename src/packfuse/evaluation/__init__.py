"""Evaluation of a pack against its members, and the choice of models that make a good pack.

Other rooms may import the names of `__all__`, which are loaded on first use, the registry and the
interface of `tasks`, and `determine`, `lm_tasks`, `markdown` and `plot`. This room may use the pack
and the rooms below it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packfuse.evaluation.journal import Journal
    from packfuse.evaluation.reports.report import Evaluation
    from packfuse.evaluation.run import evaluate, read_questions, task_for
    from packfuse.evaluation.setting import Samples, Setting, every_method, grid

__all__ = [
    "Evaluation",
    "Journal",
    "Samples",
    "Setting",
    "evaluate",
    "every_method",
    "grid",
    "read_questions",
    "task_for",
]

_HOMES = {
    "Evaluation": "reports.report",
    "Journal": "journal",
    "Samples": "setting",
    "Setting": "setting",
    "evaluate": "run",
    "every_method": "setting",
    "grid": "setting",
    "read_questions": "run",
    "task_for": "run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `tasks` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
