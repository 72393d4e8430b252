"""Constrained decoding: answers are valid under every rule and every way of decoding."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given, settings, strategies
from pydantic import BaseModel, ConfigDict, Field

from packfuse import Pack
from packfuse.constraint import Constraint, Grammar, JsonSchema, Regex, as_constraint
from packfuse.errors import ConfigError, ConstraintError
from packfuse.generation.output.result import Answer
from tests.support.packs import tiny_members, tiny_pack
from tests.support.small import small_pack

PROMPT = "The answer, in short, is this one: "
PROMPTS = [PROMPT, "Short", "A third prompt, of another length"]
RULES = ["packllm", "unite", "mixture"]


class Thing(BaseModel):
    """Bounded, like the other constraints, so that every answer ends before the token limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["one", "日本"]
    n: int = Field(ge=0, le=999)
    s: str = Field(max_length=3)
    on: list[bool] = Field(max_length=1)


def is_thing(text: str) -> bool:
    return "\n" not in text and Thing.model_validate_json(text) is not None


REGEX = r"[A-Z][a-z]{2,5} [0-9]{2}(é|中文)?"
LARK = """
start: item | "(" inner ")"
inner: item | "[" item "]"
item: "yes" | "no" " " /[0-9]{1,3}/
"""
ITEM = "(yes|no [0-9]{1,3})"
DERIVED = rf"{ITEM}|\({ITEM}\)|\(\[{ITEM}\]\)"

CONSTRAINTS: dict[str, tuple[Constraint, Callable[[str], Any]]] = {
    "json_schema": (JsonSchema(Thing.model_json_schema()), is_thing),
    "regex": (Regex(REGEX), lambda text: re.fullmatch(REGEX, text)),
    "grammar": (Grammar(LARK), lambda text: re.fullmatch(DERIVED, text)),
}
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"temperature": 1.5, "seed": 3},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "several": {"do_sample": True, "num_return_sequences": 2, "seed": 4},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}

every_constraint = pytest.mark.parametrize("name", CONSTRAINTS)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two random members with large vocabularies."""
    return tiny_pack(tiny_members(["deepseek", "mistral"]), reference="deepseek")


@pytest.fixture(scope="module")
def small() -> Pack:
    """Two random members with small vocabularies, and a pad token that does not end an answer."""
    return small_pack(pad=True)


def check(name: str, answer: Answer) -> None:
    assert answer.record.constraint == name
    assert answer.record.finish_reason == "stop"
    assert CONSTRAINTS[name][1](answer.text), answer.text


@every_constraint
@every_rule
def test_answers_satisfy_the_constraint(pack: Pack, name: str, rule: Any) -> None:
    answer = pack.generate(PROMPT, constraint=CONSTRAINTS[name][0], fusion=rule, max_new_tokens=100)
    check(name, answer)


@pytest.mark.parametrize("decoding", DECODING)
@every_constraint
@every_rule
def test_every_way_of_decoding_satisfies_the_constraint(
    small: Pack, name: str, rule: Any, decoding: str
) -> None:
    found = small.generate(
        PROMPT,
        constraint=CONSTRAINTS[name][0],
        fusion=rule,
        max_new_tokens=150,
        **DECODING[decoding],
    )
    answers = found if isinstance(found, list) else [found]
    assert len(answers) == DECODING[decoding].get("num_return_sequences", 1)
    for answer in answers:
        check(name, answer)


@settings(max_examples=10)
@given(
    strategies.text(min_size=1, max_size=20),
    strategies.integers(0, 2**32 - 1),
    strategies.sampled_from([0.3, 1.0, 3.0]),
)
def test_any_prompt_and_any_seed(prompt: str, seed: int, temperature: float) -> None:
    for name, (constraint, _) in CONSTRAINTS.items():
        answer = _shared().generate(
            prompt, constraint=constraint, seed=seed, temperature=temperature, max_new_tokens=150
        )
        check(name, answer)


@functools.cache
def _shared() -> Pack:
    return small_pack(fusion="unite", weighting="uniform")


@pytest.mark.parametrize("beams", [1, 3])
@every_constraint
def test_a_batch_answers_like_single_calls(small: Pack, name: str, beams: int) -> None:
    arguments = {"constraint": CONSTRAINTS[name][0], "max_new_tokens": 40, "num_beams": beams}
    together = small.generate(PROMPTS, **arguments)
    alone = [small.generate(prompt, **arguments) for prompt in PROMPTS]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


@every_constraint
def test_a_stream_joined_is_the_whole_text(small: Pack, name: str) -> None:
    arguments = {"constraint": CONSTRAINTS[name][0], "max_new_tokens": 100}
    chunks = list(small.stream(PROMPT, **arguments))
    answer = small.generate(PROMPT, **arguments)
    assert "".join(chunk.text for chunk in chunks) == answer.text
    record = chunks[-1].record
    assert record is not None
    assert record.constraint == name


def test_drafts_that_break_the_constraint_are_rejected(small: Pack) -> None:
    """The prompt repeats itself, and the constraint forbids to continue in the same way."""
    prompt = "red green blue red green blue red"
    held = Regex("( green red){3} green x")
    arguments = {"constraint": held, "max_new_tokens": 60}
    drafted = small.generate(prompt, prompt_lookup_num_tokens=8, **arguments)
    assert drafted.token_ids == small.generate(prompt, **arguments).token_ids
    assert drafted.text == " green red green red green red green x"


@pytest.mark.parametrize("pad", [False, True])
def test_a_row_that_a_stop_string_ended_does_not_affect_the_others(pad: bool) -> None:
    pack = small_pack(pad=pad, prefix_cache=0)
    held = {"constraint": Regex("[a-z ]{40,60}"), "max_new_tokens": 12}
    whole, other = (pack.generate(prompt, **held).text for prompt in PROMPTS[:2])
    stop = next(letter for letter in whole if letter not in other)
    answers = pack.generate(PROMPTS[:2], stop=stop, **held)
    alone = [pack.generate(prompt, stop=stop, **held) for prompt in PROMPTS[:2]]
    assert [answer.text for answer in answers] == [whole[: whole.index(stop)], other]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert [answer.record.usage for answer in answers] == [answer.record.usage for answer in alone]
    assert [answer.record.finish_reason for answer in answers] == ["stop", "length"]


def test_a_complete_text_ends_the_answer_despite_min_new_tokens(small: Pack) -> None:
    answer = small.generate(PROMPT, constraint=Regex("ab"), min_new_tokens=10, max_new_tokens=20)
    assert (answer.text, answer.record.finish_reason) == ("ab", "stop")


def test_a_constraint_has_precedence_over_other_processors(small: Pack) -> None:
    ban = [[index] for index in small.members[0].vocabulary.encode("x")]
    answer = small.generate(PROMPT, constraint=Regex("x+y"), bad_words_ids=ban, max_new_tokens=4)
    assert re.fullmatch("x+y?", answer.text)


def test_the_empty_text_can_be_the_only_one(small: Pack) -> None:
    answer = small.generate(PROMPT, constraint=Regex(""))
    assert (answer.text, answer.record.usage.completion_tokens) == ("", 1)


def test_answers_without_a_constraint_are_not_affected(small: Pack) -> None:
    before = small.generate(PROMPT, max_new_tokens=12)
    held = small.generate(PROMPT, max_new_tokens=12, constraint=Regex("[0-9]*"), fusion="unite")
    after = small.generate(PROMPT, max_new_tokens=12)
    assert before.token_ids == after.token_ids != held.token_ids
    assert before.record.constraint is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Regex("("), "unclosed group"),
        (Regex("(?=a)b"), "look-around"),
        (Regex(r"(a)\1"), "backreference"),
        (Grammar("start: missing"), "missing"),
        (Grammar("nonsense"), "Expected token"),
        (JsonSchema({"type": "strin"}), "strin"),
        (JsonSchema({"enum": []}), "empty"),
        (JsonSchema({"$ref": "#/$defs/Missing"}), "Missing"),
        ({"type": b"string"}, "no JSON schema"),
        (3, "3 is not a constraint"),
        ("[0-9]", "is not a constraint"),
        ([{"type": "integer"}], "is not a constraint"),
        (Thing(kind="one", n=1, s="", on=[]), "is not a constraint"),
        (BaseModel, "is not a constraint"),
        (int, "is not a constraint"),
    ],
    ids=str,
)
def test_an_invalid_constraint_is_refused_with_the_reason(
    small: Pack, given: Any, reason: str
) -> None:
    with pytest.raises(ConstraintError, match=re.escape(reason)) as caught:
        small.generate(PROMPT, constraint=given)
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in caught.value.hint


def test_a_model_without_a_json_schema_is_no_constraint() -> None:
    class Caller(BaseModel):
        back: Callable[[], int]

    with pytest.raises(ConstraintError, match="Callable"):
        as_constraint(Caller)


def test_a_constraint_that_no_text_satisfies_is_an_error(small: Pack) -> None:
    with pytest.raises(ConstraintError, match="no text satisfies this regex"):
        small.generate(PROMPT, constraint=Regex("x[a&&b]"))
    assert small.generate(PROMPT, max_new_tokens=2).record.finish_reason == "length"


@pytest.mark.parametrize("given", [Thing, Thing.model_json_schema(), CONSTRAINTS["json_schema"][0]])
def test_a_schema_may_be_a_model_a_dict_or_a_constraint(given: Any) -> None:
    assert as_constraint(given) == CONSTRAINTS["json_schema"][0]


def test_none_is_no_constraint() -> None:
    assert as_constraint(None) is None
