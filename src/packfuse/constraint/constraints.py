"""Constraints on the text of an answer: a JSON schema, a regular expression or a grammar.

They are applied by constrained decoding: at every step, tokens that would break the constraint are
masked in the fused distribution. llguidance computes the masks.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from pydantic import BaseModel, ConfigDict, PydanticUserError

from packfuse.constraint.json_schema import (
    LAYOUT,
    NAMED,
    VALUES,
    Omission,
    decodable,
    grammar_of,
    is_expressible,
    problem,
)
from packfuse.errors import ConstraintError


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
        """Check that llguidance can express the constraint, and that some text satisfies it.

        Raises:
            ConstraintError: if not, with the reason.
        """
        grammar = self.grammar()
        impossible, reasons = LLMatcher.validate_grammar_with_warnings(grammar)
        if impossible:
            raise ConstraintError(
                f"this {self.kind} cannot be a constraint: {reasons[0].strip()}",
                hint="leave out what llguidance does not support",
            )
        check_satisfiable(grammar, self.kind)

    @property
    def notes(self) -> tuple[str, ...]:
        """What decoding does not enforce, for the record of an answer."""
        return ()

    def problem(self, text: str) -> str | None:
        """What decoding does not enforce and a complete answer does not satisfy; None if nothing.

        Args:
            text: The answer.
        """
        return None


class JsonSchema(Constraint):
    """A JSON value that is valid under a schema, on one line, in the layout of `json.dumps`.

    Keywords that llguidance does not support (`omissions`) are left out for decoding. The complete
    answer is checked with the whole schema, and the record says what was found.

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
        return grammar_of(self.laid_out())

    def laid_out(self) -> dict[str, Any]:
        """The schema for decoding with the layout of the text, for use inside larger grammars."""
        schema = decodable(self.schema_).schema
        closed = _closed(schema) if self.closed else schema
        if closed is not schema and not is_expressible(closed):
            # Parts of `allOf` exclude each other once they are closed.
            closed = schema
        return {**closed, "x-guidance": {**LAYOUT, **closed.get("x-guidance", {})}}

    @property
    def omissions(self) -> tuple[Omission, ...]:
        """The keywords that are left out for decoding."""
        return decodable(self.schema_).omissions

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Constraint.notes`."""
        left_out = ", ".join(map(str, self.omissions))
        if not left_out:
            return ()
        return (f"decoding did not enforce {left_out} of the schema; the answer is checked at the "
                "end",)  # fmt: skip

    def problem(self, text: str) -> str | None:
        """See `Constraint.problem`."""
        if not self.omissions:
            return None
        try:
            return problem(self.schema_, json.loads(text))
        except (ValueError, RecursionError) as error:
            return str(error)


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


@lru_cache(maxsize=256)
def check_satisfiable(grammar: str, kind: str, tokens: tuple[bytes, ...] | None = None) -> None:
    """Check that some text satisfies a grammar, as far as a short search shows.

    Args:
        grammar: The grammar, in the format of llguidance.
        kind: What it is, for the error.
        tokens: What texts can be written with; None for all bytes.

    Raises:
        ConstraintError: if no text does.
    """
    tokenizer = _byte_tokenizer(ALL_BYTES if tokens is None else tokens)
    end = tokenizer.eos_token
    waiting = [LLMatcher(tokenizer, grammar)]
    for _ in range(_SEARCH_STEPS):
        if not waiting:
            raise ConstraintError(
                f"no text satisfies this {kind}"
                if tokens is None
                else f"the tokens of the reference cannot write a text that satisfies this {kind}",
                hint="change it so that some text fits",
            )
        matcher = waiting.pop()
        allowed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            continue
        ids = np.flatnonzero(np.unpackbits(allowed, bitorder="little")).tolist()
        if end in ids or len(ids) > _WIDE:
            return
        for index in ids:
            following = matcher.deep_copy()
            if following.consume_token(index):
                waiting.append(following)


ALL_BYTES = tuple(bytes([byte]) for byte in range(256))
"""Tokens that write every text."""

_SEARCH_STEPS = 300
"""Number of states after which some text is assumed to satisfy a grammar."""
_WIDE = 64
"""Number of possible next bytes that is not looked into: a free text, which can end."""


class _Bytes:
    """A small vocabulary, in the form that llguidance takes."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = [*tokens, b"<end>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return [self.tokens.index(bytes([byte])) for byte in text if bytes([byte]) in self.tokens]


@lru_cache(maxsize=8)
def _byte_tokenizer(tokens: tuple[bytes, ...]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes(tokens)), len(tokens) + 1, [len(tokens)])


def _closed(schema: Any, *, inside_all_of: bool = False) -> Any:
    """The schema with `additionalProperties: false` in every object with listed properties.

    Not in the parts of `allOf`, nor beside it: there, properties are listed in several places.
    """
    if isinstance(schema, Mapping):
        closed = {key: _closed_part(key, value) for key, value in schema.items()}
        properties = schema.get("properties")
        alone = not inside_all_of and "allOf" not in schema
        if alone and isinstance(properties, Mapping) and schema.get("type", "object") == "object":
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    return schema


def _closed_part(key: str, value: Any) -> Any:
    if key in VALUES:
        return value
    if key in NAMED and isinstance(value, Mapping):
        return {name: _closed(schema) for name, schema in value.items()}
    if key == "allOf" and isinstance(value, list):
        return [_closed(item, inside_all_of=True) for item in value]
    return _closed(value)
