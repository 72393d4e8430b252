"""What an evaluation asks: a pack or a member, under one setting or several."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from packfuse.errors import PromptError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.tasks.base import Task


class System(ABC):
    """A pack or a member under one or several settings, each with a label.

    Attributes:
        labels: Names of the settings in tables.
        identity: Everything that the outcomes depend on besides the question, as plain JSON.
        batch: Questions per call of `run`.
    """

    labels: list[str]
    identity: dict[str, Any]
    batch: int = 1

    @property
    def key(self) -> str:
        """The identity as text."""
        return json.dumps(self.identity, sort_keys=True)

    @abstractmethod
    def run(
        self, task: Task, questions: Sequence[Question]
    ) -> Iterator[dict[str, Outcome] | PromptError]:
        """Outcomes by label for each question, in order, as they are known.

        Yields:
            The outcomes; for a question that is too long for a member, that error.

        Raises:
            MemberError: if a member fails.
        """
