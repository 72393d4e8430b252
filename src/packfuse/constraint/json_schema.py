"""JSON schemas for constrained decoding.

llguidance cannot express every keyword. Keywords only narrow what a schema allows, so those that it
refuses are left out for decoding, and the finished value is checked with the whole schema. Which
ones these are is found by compiling each keyword, not from a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from jsonschema import (  # type: ignore[import-untyped]
    Draft4Validator,
    Draft7Validator,
    Draft202012Validator,
)
from jsonschema.exceptions import SchemaError, best_match  # type: ignore[import-untyped]
from llguidance import LLMatcher
from referencing import Registry

from packfuse.errors import ConstraintError

Schema = dict[str, Any]

LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Layout of JSON text, as `json.dumps` has it; free white space could be repeated forever."""

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value is an object of schemas by name."""

VALUES = ("const", "enum", "default", "examples", "example", "required", "dependentRequired")
"""Keywords whose value is data, not a schema."""

_STRUCTURE = ("$ref", "oneOf", "$defs", "definitions", "$id", "$schema", "id")
"""Keywords that are compiled with the whole schema only."""

_DRAFTS: tuple[Any, ...] = (Draft202012Validator, Draft7Validator, Draft4Validator)


class Omission(NamedTuple):
    """A keyword that is left out for decoding.

    Attributes:
        path: Where the schema with the keyword is, as a JSON pointer.
        keyword: The keyword.
    """

    path: str
    keyword: str

    def __str__(self) -> str:
        """The keyword and its place."""
        return f"{self.keyword!r} at {self.path or '/'}"


class Decodable(NamedTuple):
    """A schema that llguidance can express.

    Attributes:
        schema: The schema.
        omissions: What was left out.
    """

    schema: Schema
    omissions: tuple[Omission, ...] = ()


def grammar_of(schema: Mapping[str, Any]) -> str:
    """A schema in the grammar format of llguidance, in the layout of `json.dumps`."""
    options = {**LAYOUT, **schema.get("x-guidance", {})}
    return LLMatcher.grammar_from_json_schema({**schema, "x-guidance": options})


def is_expressible(schema: Mapping[str, Any]) -> bool:
    """Whether llguidance can express a schema, and some value satisfies it."""
    return _refusal(schema) is None


def decodable(schema: Mapping[str, Any]) -> Decodable:
    """The schema for decoding: without the keywords that llguidance does not support.

    Raises:
        ConstraintError: for what is no JSON schema, and for a schema that no value satisfies.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"this is no JSON schema: {error}") from error
    found = _decodable(text)
    # The caller's own copy: results are cached.
    return Decodable(json.loads(json.dumps(found.schema)), found.omissions)


@lru_cache(maxsize=128)
def _decodable(text: str) -> Decodable:
    schema = json.loads(text)
    reason = _refusal(schema)
    if reason is None:
        return Decodable(schema)
    _check_form(schema)
    omissions: list[Omission] = []
    reduced: Schema = _reduced(schema, "", omissions)
    reason = _refusal(reduced)
    if reason is not None:
        reduced = _without_one_of(reduced, omissions)
        reason = _refusal(reduced)
    if reason is None:
        return Decodable(reduced, tuple(omissions))
    place = next((path for path, part in _parts(reduced, "") if _unsatisfiable(part)), None)
    where = f" (at {place})" if place else ""
    if reason.startswith("Unsatisfiable"):
        raise ConstraintError(
            f"no JSON value satisfies this schema: {reason}{where}",
            hint="change the schema so that some value fits",
        )
    raise ConstraintError(f"this schema cannot be a constraint: {reason}{where}")


def problem(schema: Mapping[str, Any], value: Any) -> str | None:
    """Why a value does not satisfy a schema; None if it does.

    Nothing is fetched: references to other documents count as unknown.
    """
    try:
        validator = _draft(schema)(schema, registry=Registry())
        found: Any = best_match(validator.iter_errors(value))
    except Exception as error:  # regular expressions and references that only llguidance knows
        return f"it could not be checked: {type(error).__name__}: {error}"
    if found is None:
        return None
    path = "/".join(map(str, ["", *found.absolute_path]))
    return f"{found.message} ({found.validator!r}, at {path or '/'})"


def _draft(schema: Any) -> Any:
    """The validator of the newest draft that a schema fits; of the newest if it fits none."""
    for draft in _DRAFTS:
        try:
            draft.check_schema(schema)
        except SchemaError:
            continue
        return draft
    return _DRAFTS[0]


def _check_form(schema: Schema) -> None:
    """Check that a schema is one: that its keywords have values of the right kind."""
    try:
        _draft(schema).check_schema(schema)
    except SchemaError as error:
        path = "/".join(map(str, ["", *error.absolute_path]))
        raise ConstraintError(f"this is no JSON schema: {error.message} (at {path})") from error


def _refusal(schema: Mapping[str, Any]) -> str | None:
    """Why llguidance refuses a schema; None if it does not."""
    try:
        refused, reasons = LLMatcher.validate_grammar_with_warnings(grammar_of(schema))
    except (TypeError, ValueError) as error:
        raise ConstraintError(f"this is no JSON schema: {error}") from error
    return reasons[0].strip() if refused else None


def _unsatisfiable(schema: Schema) -> bool:
    return (_refusal(_blank(schema)) or "").startswith("Unsatisfiable")


def _reduced(schema: Any, path: str, omissions: list[Omission]) -> Any:
    """A schema without the keywords that llguidance refuses by themselves, at any depth."""
    if not isinstance(schema, dict):
        return schema
    kept: Schema = {}
    for keyword, value in schema.items():
        if keyword not in _STRUCTURE and _refused(schema, keyword):
            omissions.append(Omission(path, keyword))
            if keyword == "patternProperties":
                # The names that the patterns allow must not be forbidden now.
                kept["additionalProperties"] = True
            continue
        if keyword == "additionalProperties" and kept.get(keyword) is True:
            continue
        kept[keyword] = _within(keyword, value, f"{path}/{_escaped(keyword)}", omissions)
    return kept


def _within(keyword: str, value: Any, path: str, omissions: list[Omission]) -> Any:
    """The value of a keyword, with the schemas in it reduced."""
    if keyword in VALUES:
        return value
    if keyword in NAMED and isinstance(value, dict):
        return {n: _reduced(s, f"{path}/{_escaped(n)}", omissions) for n, s in value.items()}
    if isinstance(value, list):
        return [_reduced(item, f"{path}/{at}", omissions) for at, item in enumerate(value)]
    return _reduced(value, path, omissions)


def _refused(schema: Schema, keyword: str) -> bool:
    """Whether llguidance does not support a keyword, whatever else the schema says."""
    alone = {key: schema[key] for key in ("type", keyword) if key in schema}
    reason = _refusal(_blank(alone))
    return reason is not None and not reason.startswith("Unsatisfiable")


def _blank(schema: Schema) -> Schema:
    """A schema in which every inner schema allows anything."""

    def blank(keyword: str, value: Any) -> Any:
        if keyword in VALUES or not isinstance(value, dict | list):
            return value
        if keyword in NAMED and isinstance(value, dict):
            return {name: {} for name in value}
        if isinstance(value, list):
            return [{} if isinstance(item, dict | bool) else item for item in value]
        return {}

    return {k: blank(k, v) for k, v in schema.items() if k not in _STRUCTURE}


def _without_one_of(schema: Schema, omissions: list[Omission]) -> Schema:
    """A schema that has `anyOf` for each `oneOf` that llguidance does not support."""
    places = [path for path, part in _parts(schema, "") if "oneOf" in part]
    replaced = set(places)
    if not places or _refusal(_with_any_of(schema, "", replaced)):
        return schema
    for path in places:
        if _refusal(_with_any_of(schema, "", replaced - {path})) is None:
            replaced.discard(path)
    omissions += [Omission(path, "oneOf") for path in places if path in replaced]
    return _with_any_of(schema, "", replaced)  # type: ignore[no-any-return]


def _with_any_of(schema: Any, path: str, places: set[str]) -> Any:
    if isinstance(schema, list):
        return [_with_any_of(item, f"{path}/{at}", places) for at, item in enumerate(schema)]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: value if key in VALUES else _with_any_of(value, f"{path}/{_escaped(key)}", places)
        for key, value in schema.items()
    }
    if path in places and "oneOf" in found:
        options = {"anyOf": found.pop("oneOf")}
        found["allOf"] = [*found.get("allOf", []), options]
    return found


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Schema]]:
    """All schemas in a schema with their paths, the innermost first."""
    if isinstance(schema, list):
        for at, item in enumerate(schema):
            yield from _parts(item, f"{path}/{at}")
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in VALUES:
            continue
        below = f"{path}/{_escaped(key)}"
        if key in NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from _parts(inner, f"{below}/{_escaped(name)}")
        else:
            yield from _parts(value, below)
    yield path, schema


def _escaped(name: str) -> str:
    """A name in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
