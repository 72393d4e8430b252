"""Everything that packfuse raises on purpose."""

from __future__ import annotations


class PackError(Exception):
    """Base of packfuse's errors: what happened, and in `hint` what to do next.

    Example:
        >>> str(PackError("no member is called 'x'", hint="members: a, b"))
        "no member is called 'x' (members: a, b)"
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Keep the message and its hint apart, and show them together."""
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(PackError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class ConstraintError(ConfigError):
    """A constraint that is malformed, cannot be expressed, or cannot be kept."""


class LoadError(PackError, RuntimeError):
    """A member's model or tokenizer cannot be loaded or cannot be used."""


class TokenizerError(PackError, ValueError):
    """A tokenizer whose tokens cannot be read as bytes."""


class PromptError(PackError, ValueError):
    """A prompt that is empty, malformed, or longer than a member can read."""


class DataError(PackError, ValueError):
    """A question file that cannot be read, or a task whose data cannot be had."""


class WeightsError(PackError, ValueError):
    """Weights that are negative, do not sum to one, or name no member."""


class MemberError(PackError, RuntimeError):
    """A member failed while running: which one, and at what step."""


class UnsupportedError(PackError, NotImplementedError):
    """Something that a pack cannot do exactly, and therefore refuses."""


class StarterError(PackError, RuntimeError):
    """The starter pack cannot be fetched, verified or converted, or its expert is missing."""
