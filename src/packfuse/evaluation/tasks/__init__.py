"""Task types of `packfuse eval`: how a line becomes a question, and how an answer is graded.

Other rooms may import `tasks()`, which finds the tasks of this folder (one a file) and those of
installed plugins, and the interface `base.Task`. This room may use `evaluation.question`,
`evaluation.files` and the root modules; none of them imports torch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from packfuse.registry import Registry


@cache
def tasks() -> Registry[Any]:
    """The registry of tasks."""
    from packfuse.evaluation.tasks.base import Task

    return Registry("task", "packfuse.tasks", "packfuse.evaluation.tasks", Task)
