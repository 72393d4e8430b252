"""The exceptions and warnings of packfuse."""

from __future__ import annotations


class PackError(Exception):
    """Base class of all errors.

    Attributes:
        message: What happened.
        hint: What to do about it; may be empty.

    Example:
        >>> str(PackError("no member is called 'x'", hint="members: a, b"))
        "no member is called 'x' (members: a, b)"
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        """The text of the exception is `message`, with `hint` in parentheses."""
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(PackError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class ConstraintError(ConfigError):
    """A constraint is malformed, is not supported by llguidance, or cannot be satisfied."""


class LoadError(PackError, RuntimeError):
    """A member's model or tokenizer cannot be loaded or cannot be used."""


class TokenizerError(PackError, ValueError):
    """The tokens of a tokenizer cannot be mapped to bytes."""


class PromptError(PackError, ValueError):
    """A prompt is empty, malformed, or longer than the context window of a member."""


class DataError(PackError, ValueError):
    """A question file cannot be read, or the data of a task is not available."""


class WeightsError(PackError, ValueError):
    """Weights are negative, do not sum to one, or are given for an unknown member."""


class MemberError(PackError, RuntimeError):
    """A member failed at run time; the message names the member and the step."""


class ServerError(MemberError):
    """The server of a member cannot be reached, is too slow, or answers what cannot be right.

    Attributes:
        member: The member's name.
        problem: What happened; the message also names the member and its address.
    """

    def __init__(self, message: str, *, member: str, problem: str = "", hint: str = "") -> None:
        """See `PackError`."""
        super().__init__(message, hint=hint)
        self.member = member
        self.problem = problem or message


class UnsupportedError(PackError, NotImplementedError):
    """A pack cannot do this exactly, and does not approximate it."""


class ForkError(PackError, RuntimeError):
    """A process was forked while its parent used what the child asks for."""


class BusyError(PackError, RuntimeError):
    """Too many calls wait for a pack already; try again later.

    Attributes:
        waiting: Number of prompts that wait.
    """

    def __init__(self, message: str, *, waiting: int, hint: str = "") -> None:
        """See `PackError`."""
        super().__init__(message, hint=hint)
        self.waiting = waiting


class ClosedError(PackError, RuntimeError):
    """A pack was closed, and answers no more calls."""


class StarterError(PackError, RuntimeError):
    """The starter pack cannot be fetched, verified or converted, or its expert is missing."""


class ExperimentalWarning(UserWarning):
    """An experimental setting is used on hardware where measurements showed little or no gain."""
