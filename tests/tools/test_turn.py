"""Turns of a chat with tools and structured answers, on scripted and on random packs."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from packfuse import Pack
from packfuse.constraint import Regex
from packfuse.errors import ConfigError, ConstraintError
from packfuse.text.chats.tool_text import write_call
from packfuse.tools import Completion, Reply, ReplyDelta, Turn
from tests.support.scripted import TEMPLATE, scripted_pack
from tests.support.small import scripted_small, small_pack
from tests.tools.test_reply import part, parts

CHAT = [{"role": "user", "content": "Please."}]
RULES = ["packllm", "unite", "mixture"]


class Place(BaseModel):
    city: str
    at: tuple[int, int]


class Trip(BaseModel):
    """Where a schema has definitions and references."""

    places: list[Place]
    home: Place | None = None


FIND = {"name": "find", "parameters": {"properties": {"q": {"type": "string"}}, "required": ["q"]}}
TRIP = {"type": "function", "function": {"name": "trip", "parameters": Trip.model_json_schema()}}
TIME = {"name": "time"}
TOOLS = [FIND, TRIP, TIME]
FEW = [FIND, TIME]

QUERY = {"q": 'é "日本" \\ \n</tool_call>\n<tool_call> 🎉'}
WAY = {"places": [{"city": "Köln", "at": [1, -2]}], "home": None}


def answers(text: str, **settings: Any) -> Pack:
    """A pack whose answer is always `text`."""
    return scripted_small(lambda _: text, **settings)


def both(turn: Completion) -> Reply:
    """The reply, which is the same whole and streamed."""
    reply, deltas = turn.answer(), list(turn.stream())
    last = deltas[-1].reply
    assert last is not None
    assert all(delta.reply is None for delta in deltas[:-1])
    assert (last.text, last.reasoning) == (reply.text, reply.reasoning)
    assert [call.arguments for call in last.calls] == [call.arguments for call in reply.calls]
    assert [part(ReplyDelta(broken=b)) for b in last.broken] == [
        part(ReplyDelta(broken=b)) for b in reply.broken
    ]
    assert last.record.usage == reply.record.usage
    assert dict(parts(deltas[:-1])).get("text", "") == reply.text
    return reply


def calls_of(reply: Reply) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in reply.calls]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("Just text, no call.", []),
        ("", [("find", QUERY)]),
        ("I look it up.", [("trip", WAY)]),
        ("日本 🎉 both:\n and more", [("find", QUERY), ("time", {})]),
    ],
)
def test_a_free_answer_may_have_text_and_calls(
    text: str, calls: list[tuple[str, Any]], rule: str
) -> None:
    written = "\n".join([*([text] if text else []), *(write_call(*call) for call in calls)])
    tools = TOOLS if "trip" in dict(calls) else FEW
    reply = both(Turn(answers(written), CHAT, tools=tools, fusion=rule, max_new_tokens=400))
    assert (reply.text, calls_of(reply), reply.broken) == (text, calls, ())
    assert reply.finish_reason == ("tool_calls" if calls else "stop")
    assert reply.record.constraint == "grammar"


def test_a_large_vocabulary_generates_the_same_calls() -> None:
    pack = scripted_pack(lambda _: "Sure. 你好\n" + write_call("find", QUERY), "mistral")
    reply = Turn(pack, CHAT, tools=FEW).answer()
    assert (reply.text, calls_of(reply)) == ("Sure. 你好", [("find", QUERY)])


@pytest.mark.parametrize("choice", ["any", "find", {"type": "function", "function": FIND}])
def test_a_forced_call_does_not_depend_on_the_members(choice: Any) -> None:
    pack = answers("No.")
    turn = Turn(pack, CHAT, tools=FEW, tool_choice=choice, max_new_tokens=40)
    assert turn.answer().text == ""
    forced = answers(write_call("find", QUERY))
    reply = both(Turn(forced, CHAT, tools=FEW, tool_choice=choice))
    assert (reply.text, calls_of(reply)) == ("", [("find", QUERY)])


@pytest.mark.parametrize("threshold", [0.3, 1 - 1e-12])
def test_a_nudged_pack_calls_tools(threshold: float) -> None:
    """The leader is sure of the call, or the nudger writes all of it; the nudger ends it."""
    pack = answers(write_call("find", QUERY), gate={"name": "nudge", "threshold": threshold})
    reply = both(Turn(pack, CHAT, tools=FEW, trace=True))
    assert calls_of(reply) == [("find", QUERY)]
    assert reply.record.finish_reason == "stop"
    assert [step.fused for step in reply.record.trace or []][-1]
    assert (reply.record.fused == 1) == (threshold > 0.5)
    forced = Turn(pack, CHAT, tools=FEW, tool_choice="time").answer()
    assert calls_of(forced) == [("time", {})]


def test_one_call_or_several() -> None:
    pack = answers("\n".join([write_call("time", {})] * 3))
    for choice, parallel, count in [("auto", None, 3), ("auto", False, 1), ("any", True, 3)]:
        turn = Turn(pack, CHAT, tools=FEW, tool_choice=choice, parallel_tool_calls=parallel)
        assert len(turn.answer().calls) == count


def test_only_the_chosen_tool_is_called() -> None:
    pack = answers(write_call("find", QUERY))
    reply = Turn(pack, CHAT, tools=FEW, tool_choice="time").answer()
    assert calls_of(reply) == [("time", {})]
    text = Turn(pack, CHAT, tools=FEW, tool_choice="none").answer()
    assert (text.text, text.calls) == (write_call("find", QUERY), ())


def test_tools_calls_and_results_are_in_the_prompt() -> None:
    seen: list[str] = []

    def script(prompt: str) -> str:
        seen.append(prompt)
        return "It is late." if "<tool_response>" in prompt else write_call("time", {})

    pack = scripted_small(script)
    first = Turn(pack, CHAT, tools=FEW).answer()
    (call,) = first.calls
    again = {"name": call.name, "arguments": json.dumps(call.arguments)}
    more: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": again}]},
        {"role": "tool", "tool_call_id": "1", "content": "23:59"},
    ]
    turn = Turn(pack, [*CHAT, *more], tools=FEW)
    reply = turn.answer()
    assert (reply.text, reply.calls) == ("It is late.", ())
    assert f"[assistant] {write_call('time', {})}" in seen[-1]
    assert '{"name": "time", "content": "23:59"}' in seen[-1]
    assert turn.prompt_tokens == max(reply.record.usage.prompt_tokens_by_member.values())


def test_a_call_in_a_users_message_calls_nothing() -> None:
    pack = scripted_small(lambda prompt: "Spelled." if "<\\tool_call>\n{}" in prompt else "?")
    spelling = [{"role": "user", "content": f"{write_call('find', QUERY)} <tool_call>\n{{}}"}]
    reply = both(Turn(pack, spelling, tools=FEW))
    assert (reply.text, reply.calls, reply.broken) == ("Spelled.", (), ())


def test_an_answer_that_is_cut_off_has_a_broken_call_only() -> None:
    text = f"Well.\n{write_call('find', {'q': 'abc'})}"
    pack = answers(text)
    whole = Turn(pack, CHAT, tools=[FIND]).answer().usage["completion_tokens"]
    kinds = []
    for limit in (3, 6, 12, 18, 19, 24, 40, whole - 1, whole):
        reply = Turn(pack, CHAT, tools=[FIND], max_new_tokens=limit).answer()
        assert "Well.\n<tool_call>\n".startswith(reply.text)
        assert not (reply.calls and reply.broken)
        kinds.append("call" if reply.calls else "broken" if reply.broken else "text")
        assert reply.record.finish_reason == ("stop" if limit == whole else "length")
        assert reply.finish_reason == ("tool_calls" if limit == whole else "length")
    order = ["text", "broken", "call"]
    assert kinds == sorted(kinds, key=order.index)
    assert set(kinds) == set(order)


class Bounded(BaseModel):
    """Short enough for a random pack to finish."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["a", "é"]
    note: str = Field("", max_length=3)
    at: list[Inner] = Field(max_length=2)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    ok: bool


@pytest.mark.parametrize("rule", RULES)
def test_arguments_of_a_random_pack_fit_their_schema_or_the_call_is_broken(rule: str) -> None:
    pack = small_pack(fusion=rule, template=TEMPLATE, context=2048)
    tools = [{"name": "f", "parameters": Bounded.model_json_schema()}, TIME]
    kinds = set()
    for seed in range(3):
        for limit in (50, 200):
            turn = Turn(
                pack, CHAT, tools=tools, tool_choice="any",
                temperature=1.2, seed=seed, max_new_tokens=limit,
            )  # fmt: skip
            reply = turn.answer()
            assert (reply.text, len(reply.calls) + len(reply.broken)) == ("", 1)
            for call in reply.calls:
                if call.name == "f":
                    Bounded.model_validate_json(json.dumps(call.arguments))
                else:
                    assert (call.name, call.arguments) == ("time", {})
            assert bool(reply.calls) == (reply.record.finish_reason == "stop")
            kinds.add("call" if reply.calls else "broken")
    assert kinds == {"call", "broken"}


# Reasoning.


def test_reasoning_is_not_part_of_the_text() -> None:
    call = write_call("time", {})
    written = f"<think>\nLet me see.\n</think>\n\nNow.\n{call}"
    reply = both(Turn(answers(written), CHAT, tools=FEW))
    assert (reply.reasoning, reply.text) == ("\nLet me see.\n", "Now.")
    assert calls_of(reply) == [("time", {})]
    plain = both(Turn(answers("<think>Hm.</think>Yes."), CHAT))
    assert (plain.reasoning, plain.text) == ("Hm.", "Yes.")


class Opened:
    """A script for templates that end with `<think>`: the answer begins inside the reasoning."""

    def __init__(self, rest: str) -> None:
        self.rest = rest

    def __call__(self, _: str) -> str:
        return f"<think>{self.rest}"


OPENING = TEMPLATE + "<think>"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


def test_a_template_may_end_with_the_tag_of_the_reasoning() -> None:
    pack = scripted_small(Opened("Hm.\n</think>\n\nYes."), template=OPENING)
    assert pack.runtime.opens_reasoning
    reply = both(Turn(pack, CHAT))
    assert (reply.reasoning, reply.text) == ("Hm.\n", "Yes.")
    assert not answers("x").runtime.opens_reasoning


@pytest.mark.parametrize("tools", [None, FEW])
@pytest.mark.parametrize("how", ["response_format", "constraint"])
def test_a_structured_answer_is_not_parsed_as_reasoning(tools: Any, how: str) -> None:
    pack = scripted_small(Opened('{"ok": true}'), template=OPENING)
    settings: dict[str, Any] = {how: SCHEMA}
    reply = both(Turn(pack, CHAT, tools=tools, **settings))
    assert (reply.text, reply.reasoning) == ('{"ok": true}', "")
    called = scripted_small(Opened(write_call("time", {})), template=OPENING)
    assert calls_of(both(Turn(called, CHAT, tools=FEW, tool_choice="any"))) == [("time", {})]


# Structured answers.


@pytest.mark.parametrize(
    "given",
    [SCHEMA, {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
     {"type": "json_schema", "json_schema": SCHEMA}],
)  # fmt: skip
def test_every_form_of_a_response_format(given: dict[str, Any]) -> None:
    pack = small_pack(template=TEMPLATE, context=2048)
    turn = Turn(pack, CHAT, response_format=given, max_new_tokens=40)
    reply = turn.answer()
    assert reply.record.constraint == "json_schema"
    assert list(json.loads(reply.text)) == ["ok"]
    assert '"properties": {"ok"' in turn.messages[0]["content"]


def test_a_response_format_of_any_object_or_any_text() -> None:
    assert answers('{"a": [1]}').generate(CHAT).text == '{"a": [1]}'
    anything = Turn(answers('{"a": [1]}'), CHAT, response_format={"type": "json_object"})
    assert anything.answer().text == '{"a": [1]}'
    free = Turn(answers("Hi."), CHAT, response_format={"type": "text"})
    assert (free.answer().text, free.request.constraint) == ("Hi.", None)


@pytest.mark.parametrize("given", [{"type": "yaml"}, {}, {"type": "json_schema"}])
def test_an_unknown_response_format_is_an_error(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not a response format"):
        Turn(answers(""), CHAT, response_format=given)


def test_an_answer_has_one_constraint() -> None:
    pack = answers("")
    for settings in (
        {"response_format": SCHEMA, "constraint": Regex("a")},
        {"response_format": SCHEMA, "tools": FEW, "tool_choice": "any"},
        {"constraint": Regex("a"), "tools": FEW, "tool_choice": "time"},
    ):
        with pytest.raises(ConfigError, match="one constraint"):
            Turn(pack, CHAT, **settings)
    with pytest.raises(ConstraintError, match="strin"):
        Turn(pack, CHAT, response_format={"type": "strin", "properties": {}})


# Tools with keywords that llguidance does not support.

UNIQUE = {
    "name": "tag",
    "parameters": {
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}
    },
}
BAD = {"name": "bad", "parameters": {"properties": {"a": {"type": "strin"}}}}


@pytest.mark.parametrize("choice", ["auto", "any", "time", "find"])
@pytest.mark.parametrize("odd", [UNIQUE, BAD], ids=lambda tool: tool["name"])
def test_a_tool_with_an_odd_schema_does_not_disable_the_others(choice: str, odd: Any) -> None:
    name = "find" if choice == "find" else "time"
    arguments = QUERY if name == "find" else {}
    pack = answers(write_call(name, arguments))
    reply = both(Turn(pack, CHAT, tools=[odd, *FEW], tool_choice=choice, max_new_tokens=400))
    assert calls_of(reply) == [(name, arguments)]
    noted = any(odd["name"] in note for note in reply.record.notes)
    assert noted == (choice in ("auto", "any"))


@pytest.mark.parametrize(("tags", "valid"), [(["a", "b"], True), (["a", "a"], False)])
def test_what_decoding_left_out_is_checked_in_the_finished_call(
    tags: list[str], valid: bool
) -> None:
    pack = answers(write_call("tag", {"tags": tags}))
    reply = both(Turn(pack, CHAT, tools=[UNIQUE, TIME], tool_choice="tag"))
    assert any("'uniqueItems' at /properties/tags" in note for note in reply.record.notes)
    assert len(reply.calls) == valid
    for broken in reply.broken:
        assert (broken.name, json.loads(broken.arguments.removesuffix("}"))) == (
            "tag",
            {"tags": tags},
        )
        assert "uniqueItems" in broken.error
        assert "/tags" in broken.error


def test_a_tool_that_cannot_be_constrained_fails_when_it_is_used() -> None:
    with pytest.raises(ConstraintError, match=r"tool 'bad'.*strin.*/properties/a/type"):
        Turn(answers(""), CHAT, tools=[BAD, *FEW], tool_choice="bad")
    with pytest.raises(ConstraintError, match="tool 'bad'"):
        Turn(answers(""), CHAT, tools=[BAD], tool_choice="any")
    called = both(Turn(answers(write_call("bad", {"a": 1})), CHAT, tools=[BAD, *FEW]))
    (broken,) = called.broken
    assert (broken.name, called.calls) == ("bad", ())
    assert "/properties/a/type" in broken.error


@pytest.mark.parametrize("limit", range(1, 14))
@pytest.mark.parametrize("choice", ["any", "auto"])
def test_a_call_that_is_cut_off_at_any_place_is_no_text(limit: int, choice: str) -> None:
    pack = answers(write_call("time", {}))
    turn = Turn(pack, CHAT, tools=FEW, tool_choice=choice, max_new_tokens=limit)
    reply = both(turn)
    assert (reply.finish_reason, reply.calls) == ("length", ())
    if choice == "any" or limit > 1:
        (broken,) = reply.broken
        assert (reply.text, "not complete" in broken.error) == ("", True)
        assert broken.text == write_call("time", {})[: len(broken.text)] != ""
