"""Schemas with keywords that llguidance does not support: left out for decoding, checked later."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from pydantic import BaseModel, Field

from packfuse.constraint import JsonSchema, Regex, as_constraint
from packfuse.constraint.json_schema import decodable, is_expressible, problem
from packfuse.errors import ConstraintError
from tests.support.small import scripted_small, small_pack

TAGS = {"type": "array", "items": {"type": "string"}}
NARROWING: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "uniqueItems": ({**TAGS, "uniqueItems": True}, ["a", "b"], ["a", "a"]),
    "contains": ({**TAGS, "contains": {"const": "x"}}, ["x"], ["y"]),
    "not": ({"type": "string", "not": {"const": "y"}}, "x", "y"),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 2}}, "ab", "a"),
    "dependentRequired": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "dependentRequired": {"a": ["b"]},
        },
        {"a": 1, "b": 2},
        {"a": 1},
    ),
    "propertyNames": (
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"ab": 1},
        {"b": 1},
    ),
    "pattern": ({"type": "string", "pattern": "^(?!x).*$"}, "y", "x"),
    "patternProperties": (
        {
            "type": "object",
            "properties": {"b": {"type": "string"}},
            "patternProperties": {"^a(?!b)": {"type": "integer"}},
        },
        {"b": "", "ac": 3},
        {"ac": "no"},
    ),
    "unevaluatedProperties": (
        {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
        {"a": 1},
        None,
    ),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}, 2, 4),
    "format": ({"type": "string", "format": "path"}, "/x", None),
}
"""A schema, a value that it allows, and one that only the keyword forbids (None: not checkable)."""

WRAPPED = {
    "itself": lambda schema: schema,
    "property": lambda schema: {"type": "object", "properties": {"p": schema}, "required": ["p"]},
    "item": lambda schema: {"type": "array", "items": schema, "minItems": 1, "maxItems": 1},
    "choice": lambda schema: {"anyOf": [schema, {"const": [None]}]},
    "definition": lambda schema: {
        "type": "object",
        "$defs": {"d": schema},
        "properties": {"p": {"$ref": "#/$defs/d"}},
        "required": ["p"],
    },
}
INSIDE = {
    "itself": lambda value: value,
    "property": lambda value: {"p": value},
    "item": lambda value: [value],
    "choice": lambda value: value,
    "definition": lambda value: {"p": value},
}


@pytest.mark.parametrize("keyword", NARROWING)
@pytest.mark.parametrize("place", WRAPPED)
def test_a_keyword_that_only_narrows_is_left_out_and_checked(keyword: str, place: str) -> None:
    inner, fits, unfit = NARROWING[keyword]
    schema = WRAPPED[place](inner)
    assert not is_expressible(schema)
    found = decodable(schema)
    assert is_expressible(found.schema)
    assert keyword in [omission.keyword for omission in found.omissions]
    constraint = as_constraint(schema)
    assert constraint is not None
    (note,) = constraint.notes
    assert repr(keyword) in note
    assert constraint.problem(json.dumps(INSIDE[place](fits))) is None
    if unfit is not None:
        assert constraint.problem(json.dumps(INSIDE[place](unfit)))


def test_the_rest_of_the_schema_still_holds() -> None:
    schema = {"type": "object", "properties": {"t": {**TAGS, "uniqueItems": True, "maxItems": 2}}}
    found = decodable(schema)
    assert found.schema["properties"]["t"] == {**TAGS, "maxItems": 2}
    assert [str(omission) for omission in found.omissions] == ["'uniqueItems' at /properties/t"]


def test_pydantic_models_with_sets_paths_and_bytes() -> None:
    class Cat(BaseModel):
        kind: str = Field(pattern="^cat$")

    class Dog(BaseModel):
        kind: str = Field(pattern="^dog$")
        tags: set[str]

    class Home(BaseModel):
        pet: Cat | Dog
        where: Path
        key: bytes

    found = decodable(Home.model_json_schema())
    assert {omission.keyword for omission in found.omissions} == {
        "uniqueItems", "format",
    }  # fmt: skip


@pytest.mark.parametrize("keyword", ["uniqueItems", "not", "oneOf"])
@pytest.mark.parametrize("fits", [True, False])
def test_the_record_says_what_was_checked(keyword: str, fits: bool) -> None:
    schema, *values = NARROWING[keyword]
    value = values[0 if fits else 1]
    pack = scripted_small(lambda _: json.dumps(value))
    answer = pack.generate([{"role": "user", "content": "?"}], constraint=schema)
    assert json.loads(answer.text) == value
    assert any("did not enforce" in note for note in answer.record.notes)
    assert any("does not satisfy" in note for note in answer.record.notes) == (not fits)


UNSATISFIABLE: dict[str, Any] = {
    "enum": {"enum": []},
    "minimum": {"type": "integer", "minimum": 5, "maximum": 3},
    "no integer": {"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3},
    "minItems": {"type": "array", "minItems": 3, "maxItems": 2},
    "minLength": {"type": "string", "minLength": 3, "maxLength": 2},
    "allOf": {"allOf": [{"const": 1}, {"const": 2}]},
    "types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "patterns": {"allOf": [{"pattern": "^a+$"}, {"pattern": "^b+$"}], "type": "string"},
    "required": {"type": "object", "required": ["a"], "properties": {"a": False}},
    "regex": Regex("[a&&b]"),
    "regex inside": Regex("x[a&&b]"),
    "alternatives": Regex("x[a&&b]|y[c&&d]"),
    "repeated": Regex("(x[a&&b])+"),
    "nothing": Regex(r"[^\s\S]"),
    "reference to itself": {"$ref": "#"},
}


@pytest.mark.parametrize("name", UNSATISFIABLE)
def test_what_nothing_satisfies_is_refused_before_anything_is_read(name: str) -> None:
    pack = small_pack()
    given = UNSATISFIABLE[name]
    with pytest.raises(ConstraintError, match=r"no (JSON value|text) satisfies"):
        pack.request("hello", {"constraint": given})
    if isinstance(given, dict) and "$ref" not in given:
        wrapped = {"type": "object", "properties": {"p": given}, "required": ["p"]}
        with pytest.raises(ConstraintError, match=r"satisf|cannot be"):
            pack.request("hello", {"constraint": wrapped})


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "/properties/a/type"),
        ({"properties": {"a": {"minimum": "3"}}}, "/properties/a/minimum"),
        ({"properties": 3}, "/properties"),
        ({"$ref": "#/$defs/Missing"}, "Missing"),
        ({"items": {"$ref": "https://example.com/x.json"}}, "example.com"),
        ({"type": b"string"}, "no JSON schema"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out_is_an_error_with_its_place(
    schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConstraintError, match=re.escape(words)):
        as_constraint(schema)


def test_deep_and_endless_schemas_are_errors() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        deep = {"items": deep}
    with pytest.raises(ConstraintError):
        as_constraint(deep)
    endless: dict[str, Any] = {"type": "array"}
    endless["items"] = endless
    with pytest.raises(ConstraintError):
        as_constraint(endless)


def test_parts_of_all_of_are_not_closed_against_each_other() -> None:
    both = {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    }
    JsonSchema(both).check()
    named = {
        "$defs": {"base": both["allOf"][0]},
        "allOf": [{"$ref": "#/$defs/base"}, both["allOf"][1]],
    }
    JsonSchema(named).check()


def test_nothing_is_fetched_for_a_check() -> None:
    found = problem({"not": {"$ref": "https://example.com/x.json"}}, 3)
    assert found is not None
    assert "could not be checked" in found


KEYWORDS = strategies.sampled_from([schema for schema, *_ in NARROWING.values()])


@given(strategies.recursive(KEYWORDS, lambda inner: strategies.one_of(
    strategies.dictionaries(strategies.sampled_from("ab~/"), inner, min_size=1, max_size=3).map(
        lambda named: {"type": "object", "properties": named}),
    inner.map(lambda one: {"type": "array", "items": one}),
    strategies.lists(inner, min_size=1, max_size=2).map(lambda many: {"anyOf": many}),
), max_leaves=4))  # fmt: skip
def test_any_nesting_of_these_keywords_can_be_decoded(schema: dict[str, Any]) -> None:
    found = decodable(schema)
    assert is_expressible(found.schema)
    assert found.omissions
