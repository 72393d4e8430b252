"""The answers of a batch, in the order in which they were completed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from packfuse.batch.lines import BatchLine
from packfuse.errors import DataError
from packfuse.jsonl import GrowingFile
from packfuse.paths import write_bytes


class BatchOutput(GrowingFile):
    """A file of answers, which an interrupted batch goes on with.

    Answers that say that the server failed (status 500 and above) are removed when the batch goes
    on, and their lines are asked again.

    Attributes:
        answers: What each answer has in short, by `custom_id`.
    """

    begin = b'{"id": "batch_req_'
    kind = "an answer of a batch"

    def __init__(self, path: Path, lines: Iterable[BatchLine], *, resume: bool) -> None:
        """Open the file, and read the answers that are there.

        Args:
            path: The file.
            lines: The requests.
            resume: Whether it may have answers.

        Raises:
            DataError: if it has answers and `resume` is false, answers to other requests, or
                anything but answers; if it cannot be read or written, or is in use.
        """
        self._ids = {line.custom_id: line.id for line in lines}
        self._packs: dict[str, str] = {}
        self._resume = resume
        self._again: list[bytes] = []
        self.answers: dict[str, Brief] = {}
        super().__init__(path)

    def _open(self) -> IO[bytes]:
        if not self._resume and self.path.exists() and self.path.stat().st_size:
            raise DataError(
                f"{self.path} is there already",
                hint="--resume goes on with it; or delete it, or name another file",
            )
        file = super()._open()
        failed = {key for key, answer in self.answers.items() if answer.status >= 500}
        if not failed:
            return file
        file.close()
        lines = self.path.read_bytes().splitlines(keepends=True)
        write_bytes(
            self.path, b"".join(one for one in lines if json.loads(one)["custom_id"] not in failed)
        )
        self.answers = {key: found for key, found in self.answers.items() if key not in failed}
        return self.path.open("ab")

    def take(self, value: Any) -> bool:
        """See `GrowingFile`."""
        if not isinstance(value, dict) or not {"id", "custom_id", "response", "error"} <= {*value}:
            return False
        key = value["custom_id"]
        if self._ids.get(key) != value["id"]:
            raise DataError(
                f"{self.path} has an answer to another request than the input has as {key!r}",
                hint="name another output file, or give the input and options that it was made of",
            )
        if key in self.answers:
            raise DataError(f"{self.path} has two answers to {key!r}", hint="delete one")
        self._keep(value)
        return True

    def add(self, answer: dict[str, Any]) -> None:
        """Append an answer, unless its line has one.

        Raises:
            DataError: if it cannot be written, or another pack wrote the answers so far.
        """
        if answer["custom_id"] in self.answers:
            return
        self._keep(answer)
        self.append(answer)

    def _keep(self, answer: dict[str, Any]) -> None:
        brief = Brief(answer)
        first = self._packs.setdefault(brief.model, brief.pack) if brief.model else brief.pack
        if first != brief.pack:
            raise DataError(
                f"{self.path}: the answers so far are of another pack ({first}, now {brief.pack})",
                hint="name another output file, or give the same members and settings",
            )
        self.answers[answer["custom_id"]] = brief


class Brief:
    """An answer in short.

    Attributes:
        status: HTTP status; 400 for a line that is no request.
        model: Name of the pack; empty for an error.
        pack: Fingerprint of the pack; empty for an error.
        tokens: Tokens of the prompt and of the answer.
        problem: The message of an error; empty for an answer.
    """

    __slots__ = ("model", "pack", "problem", "status", "tokens")

    def __init__(self, answer: dict[str, Any]) -> None:
        """The short form of a line of the output."""
        response = answer["response"] or {"status_code": 400, "body": {"error": answer["error"]}}
        body = response["body"]
        usage = body.get("usage", {})
        self.status: int = response["status_code"]
        self.model: str = body.get("model", "")
        self.pack: str = body.get("system_fingerprint", "")
        self.tokens = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        self.problem: str = body.get("error", {}).get("message", "")
