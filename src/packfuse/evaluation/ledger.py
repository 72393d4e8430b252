"""What has been computed, line by line on disk, so that an interruption loses nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO

from packfuse.errors import DataError
from packfuse.evaluation.question import Outcome, Question
from packfuse.evaluation.systems import System
from packfuse.evaluation.tasks.base import Task

Answers = dict[str, Outcome]
"""By label of the system's ways."""


class Ledger:
    """Outcomes by system and question, in one file of JSON lines that only grows.

    A line is keyed by everything its outcomes depend on: another model, setting, task or question
    has other keys, so that one file serves any number of evaluations.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that was cut off is dropped.

        Raises:
            DataError: if the file cannot be read or written.
        """
        self.path = path
        self._known: dict[str, Answers] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            kept = whole[: whole.rfind(b"\n") + 1]
            self._file: IO[bytes] = path.open("r+b" if whole else "wb")
            self._file.truncate(len(kept))
            self._file.seek(len(kept))
        except OSError as error:
            raise DataError(f"cannot use {path}: {error.strerror}") from error
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                entry = json.loads(line)
                answers = {k: Outcome(**v) for k, v in entry["answers"].items()}
                self._known[entry["key"]] = answers
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path}, line {number}: not an entry of an evaluation",
                    hint="delete the file, or name another folder",
                ) from error

    def __enter__(self) -> Ledger:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def get(self, system: System, task: Task, question: Question) -> Answers | None:
        """What was computed before, if it was."""
        return self._known.get(_key(system, task, question))

    def add(self, system: System, task: Task, question: Question, answers: Answers) -> None:
        """Keep outcomes; they are on disk when this returns."""
        key = _key(system, task, question)
        plain = {
            label: outcome.model_dump(mode="json", exclude_defaults=True)
            for label, outcome in answers.items()
        }
        entry = {"key": key, "question": question.where, "answers": plain}
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._known[key] = answers


def _key(system: System, task: Task, question: Question) -> str:
    parts = [system.key, task.name, task.model_dump_json(), question.key]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
