"""Conversations in files: what `/save` writes and `/load` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from packfuse.errors import DataError
from packfuse.paths import write_text

FORMAT = "packfuse chat 1"
"""What such a file says that it is."""


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: str
    content: str


class SavedChat(BaseModel):
    """A conversation, and the record of each answer.

    Attributes:
        format: What the file is.
        system: System message; empty for none.
        messages: Messages of user and assistant in turn.
        records: The fusion records of the answers, as JSON.
    """

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT
    system: str = ""
    messages: list[Message] = []
    records: list[dict[str, Any]] = []

    @classmethod
    def read(cls, path: Path) -> SavedChat:
        """Read a file.

        Raises:
            DataError: if it cannot be read, or is no such file.
        """
        try:
            found = cls.model_validate(json.loads(path.read_bytes()))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, ValidationError, RecursionError) as error:
            raise _foreign(path) from error
        roles = [message.role for message in found.messages]
        if found.format != FORMAT or roles != ["user", "assistant"] * (len(roles) // 2):
            raise _foreign(path)
        return found

    def write(self, path: Path) -> None:
        """Write a file; one that is there is replaced if it is a conversation.

        Raises:
            DataError: if it cannot be written, or something else is there.
        """
        if path.exists():
            self.read(path)
        try:
            write_text(path, self.model_dump_json(indent=1) + "\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"cannot write {path}: {reason}", hint="name a file in a folder that exists"
            ) from error


def _foreign(path: Path) -> DataError:
    return DataError(f"{path} is no conversation that /save wrote", hint="name another file")
