"""Constraints on the text of an answer, for constrained decoding.

Import from here: `JsonSchema`, `Regex`, `Grammar`, their base `Constraint`, and `as_constraint`.
`packfuse.constraint.json_schema` finds out what of a JSON schema decoding can enforce. This room
uses `packfuse.errors` and third-party packages only.
"""

from packfuse.constraint.constraints import (
    Constraint,
    Grammar,
    JsonSchema,
    Regex,
    as_constraint,
)

__all__ = [
    "Constraint",
    "Grammar",
    "JsonSchema",
    "Regex",
    "as_constraint",
]
