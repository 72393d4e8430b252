"""Kinds of questions for `packfuse eval`: how a line is read, and how an answer is judged.

One task a file; `tasks()` finds them, and those of installed plugins. A task is a subclass of
`packfuse.evaluation.tasks.base.Task`. This room may use `evaluation.question` and
`evaluation.files`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def tasks() -> Registry[Any]:
    """The tasks of `packfuse eval`."""
    from packfuse.evaluation.tasks.base import Task

    return Registry("task", "packfuse.tasks", "packfuse.evaluation.tasks", Task)
