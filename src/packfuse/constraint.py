"""What an answer must look like: a JSON schema, a regular expression, a grammar."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from llguidance import LLMatcher
from pydantic import BaseModel, ConfigDict, PydanticUserError

from packfuse.errors import ConstraintError

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as `json.dumps` writes it: a model that may put in spaces may go on doing so forever."""


class Constraint(BaseModel, ABC):
    """A form that generated text is held to, after fusion, token by token.

    A constraint says which texts are allowed; among those, the pack decides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    """What the record calls it."""

    @abstractmethod
    def grammar(self) -> str:
        """The grammar, as llguidance reads it.

        Raises:
            ConstraintError: if it cannot be expressed.
        """

    def check(self) -> None:
        """Refuse what the constraint engine cannot express.

        Raises:
            ConstraintError: with the engine's reason.
        """
        impossible, reasons = LLMatcher.validate_grammar_with_warnings(self.grammar())
        if impossible:
            raise ConstraintError(
                f"this {self.kind} cannot be a constraint: {reasons[0].strip()}",
                hint="leave out what llguidance does not know",
            )


class JsonSchema(Constraint):
    """A JSON value that fits a schema, on one line, as `json.dumps` lays it out.

    Example:
        >>> JsonSchema(schema={"type": "integer"}).check()
    """

    kind: ClassVar[str] = "json_schema"

    schema_: dict[str, Any]
    closed: bool = True
    """Objects hold the properties that are listed and no others, unless the schema says so."""

    def __init__(self, schema: Mapping[str, Any], *, closed: bool = True) -> None:
        """`schema` as in the JSON Schema standard."""
        super().__init__(schema_=dict(schema), closed=closed)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        try:
            return LLMatcher.grammar_from_json_schema(self.laid_out())
        except (TypeError, ValueError) as error:
            raise ConstraintError(f"this is no JSON schema: {error}") from error

    def laid_out(self) -> dict[str, Any]:
        """The schema with the layout of its text, as a part of larger grammars too."""
        schema = _closed(self.schema_) if self.closed else self.schema_
        return {**schema, "x-guidance": {**LAYOUT, **schema.get("x-guidance", {})}}


class Regex(Constraint):
    """Text that a regular expression matches from end to end.

    Example:
        >>> Regex(r"[0-9]{4}-[0-9]{2}").check()
    """

    kind: ClassVar[str] = "regex"

    pattern: str

    def __init__(self, pattern: str) -> None:
        """`pattern` in Rust's syntax: no look-around, no references to groups."""
        super().__init__(pattern=pattern)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        return LLMatcher.grammar_from_regex(self.pattern)


class Grammar(Constraint):
    """Text that a context-free grammar derives from `start`.

    Example:
        >>> Grammar('start: "yes" | "no"').check()
    """

    kind: ClassVar[str] = "grammar"

    lark: str

    def __init__(self, lark: str) -> None:
        """`lark` in Lark's notation with llguidance's extensions (`%json`, `[lazy]`, ...)."""
        super().__init__(lark=lark)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        return LLMatcher.grammar_from_lark(self.lark)


def as_constraint(given: Any) -> Constraint | None:
    """What callers may write: a constraint, a JSON schema, a pydantic model, or None.

    Raises:
        ConstraintError: for anything else, or what the engine cannot express.
    """
    if given is None:
        return None
    if inspect.isclass(given) and issubclass(given, BaseModel) and given is not BaseModel:
        try:
            given = given.model_json_schema()
        except PydanticUserError as error:
            raise ConstraintError(f"{given!r} has no JSON schema: {error.message}") from error
    if isinstance(given, Mapping):
        given = JsonSchema(given)
    if not isinstance(given, Constraint):
        raise ConstraintError(
            f"{given!r} is not a constraint",
            hint="pass a JSON schema, a pydantic model, Regex(...) or Grammar(...)",
        )
    given.check()
    return given


_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = ("const", "enum", "default", "examples")


def _closed(schema: Any) -> Any:
    """A schema whose objects with listed properties hold no others."""
    if isinstance(schema, Mapping):
        closed = {key: _closed_part(key, value) for key, value in schema.items()}
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and schema.get("type", "object") == "object":
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    return schema


def _closed_part(key: str, value: Any) -> Any:
    if key in _VALUES:
        return value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _closed(schema) for name, schema in value.items()}
    return _closed(value)
