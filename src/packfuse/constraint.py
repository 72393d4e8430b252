"""Constraints on the text of an answer: a JSON schema, a regular expression or a grammar.

They are applied by constrained decoding: at every step, tokens that would break the constraint are
masked in the fused distribution. llguidance computes the masks.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from llguidance import LLMatcher
from pydantic import BaseModel, ConfigDict, PydanticUserError

from packfuse.errors import ConstraintError

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Layout of JSON text, as `json.dumps` has it; free white space could be repeated forever."""


class Constraint(BaseModel, ABC):
    """A set of allowed texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    """Its name in the record of an answer."""

    @abstractmethod
    def grammar(self) -> str:
        """The constraint in the grammar format of llguidance.

        Raises:
            ConstraintError: if llguidance cannot express it.
        """

    def check(self) -> None:
        """Check that llguidance can express the constraint.

        Raises:
            ConstraintError: if it cannot, with the reason that llguidance gives.
        """
        impossible, reasons = LLMatcher.validate_grammar_with_warnings(self.grammar())
        if impossible:
            raise ConstraintError(
                f"this {self.kind} cannot be a constraint: {reasons[0].strip()}",
                hint="leave out what llguidance does not support",
            )


class JsonSchema(Constraint):
    """A JSON value that is valid under a schema, on one line, in the layout of `json.dumps`.

    Example:
        >>> JsonSchema(schema={"type": "integer"}).check()
    """

    kind: ClassVar[str] = "json_schema"

    schema_: dict[str, Any]
    closed: bool = True
    """Whether objects may have only the properties that the schema lists, unless the schema sets
    `additionalProperties`."""

    def __init__(self, schema: Mapping[str, Any], *, closed: bool = True) -> None:
        """`schema` follows the JSON Schema standard."""
        super().__init__(schema_=dict(schema), closed=closed)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        try:
            return LLMatcher.grammar_from_json_schema(self.laid_out())
        except (TypeError, ValueError) as error:
            raise ConstraintError(f"this is no JSON schema: {error}") from error

    def laid_out(self) -> dict[str, Any]:
        """The schema with the layout of the text, for use inside larger grammars, too."""
        schema = _closed(self.schema_) if self.closed else self.schema_
        return {**schema, "x-guidance": {**LAYOUT, **schema.get("x-guidance", {})}}


class Regex(Constraint):
    """Text that a regular expression matches as a whole.

    Example:
        >>> Regex(r"[0-9]{4}-[0-9]{2}").check()
    """

    kind: ClassVar[str] = "regex"

    pattern: str

    def __init__(self, pattern: str) -> None:
        """`pattern` has the syntax of Rust: without look-around and references to groups."""
        super().__init__(pattern=pattern)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        return LLMatcher.grammar_from_regex(self.pattern)


class Grammar(Constraint):
    """Text that a context-free grammar derives from its rule `start`.

    Example:
        >>> Grammar('start: "yes" | "no"').check()
    """

    kind: ClassVar[str] = "grammar"

    lark: str

    def __init__(self, lark: str) -> None:
        """`lark` is in the notation of Lark, with the extensions of llguidance (`%json`, ...)."""
        super().__init__(lark=lark)  # type: ignore[call-arg]

    def grammar(self) -> str:
        """See `Constraint.grammar`."""
        return LLMatcher.grammar_from_lark(self.lark)


def as_constraint(given: Any) -> Constraint | None:
    """A constraint from what a caller may pass: a constraint, JSON schema, pydantic model or None.

    Raises:
        ConstraintError: for any other value, and for a constraint that llguidance cannot express.

    Example:
        >>> as_constraint({"type": "integer"})
        JsonSchema(schema_={'type': 'integer'}, closed=True)
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
"""Keywords whose value is an object of schemas by name."""

_VALUES = ("const", "enum", "default", "examples")
"""Keywords whose value is data, not a schema."""


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` in every object with listed properties."""
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
