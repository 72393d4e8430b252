"""Parsed answers: the parts do not depend on how the text is split."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies

from packfuse.generation.output.result import FinishReason, FusionRecord, Timings, Usage
from packfuse.text.chats.tool_text import write_call
from packfuse.text.detokenizer import detokenize
from packfuse.tools.reply import Reply, ReplyDelta, ReplyParser
from tests.support import fusing

CALL = write_call("f", {"a": "é"})
BITS = [
    "<", ">", "/", "\n", " ", "x", "é", "<think>", "</think>", "think", "tool_call", "<tool_call>",
    "<tool_call>\n", "\n</tool_call>", "</tool_call>", CALL, f"\n{CALL}", '{"name": "f"',
    '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": [3]}', "{}", "[]", "\n\n",
]  # fmt: skip
TEXTS = strategies.lists(strategies.sampled_from(BITS), max_size=12).map("".join)
REASONS: list[FinishReason] = ["stop", "length", "cancelled"]
KINDS: list[dict[str, Any]] = [
    {"calling": True},
    {"calling": False},
    {"calling": True, "thinking": True},
    {"calling": False, "thinking": True},
    {"calling": False, "plain": True},
]


def record(finish_reason: FinishReason = "stop") -> FusionRecord:
    """A record without content."""
    return FusionRecord(
        members=["a"], reference="a", fusion={}, weighting={}, alignment={}, weights={"a": 1.0},
        prompt_loss=None, bits_per_byte=None, scored_tokens=0, finish_reason=finish_reason,
        usage=Usage(
            prompt_tokens=1, completion_tokens=2, total_tokens=3, prompt_tokens_by_member={"a": 1}
        ),
        timings=Timings(
            prefill_seconds=0, weights_seconds=0, decode_seconds=0, tokens_per_second=0
        ),
    )  # fmt: skip


def whole(text: str, finish_reason: FinishReason = "stop", **kind: Any) -> Reply:
    return ReplyParser(**{"calling": True, **kind}).parse(text, record(finish_reason))


def part(delta: ReplyDelta) -> tuple[str, Any]:
    """The content of a delta, without the random id of a call."""
    if delta.call:
        return "call", replace(delta.call, id="")
    if delta.broken:
        return "broken", replace(delta.broken, id="")
    return ("text", delta.text) if delta.text else ("reasoning", delta.reasoning)


def parts(deltas: list[ReplyDelta]) -> list[tuple[str, Any]]:
    """The parts of an answer in order, with neighbors of text and of reasoning joined."""
    found: list[tuple[str, Any]] = []
    for kind, group in groupby(map(part, deltas), key=lambda found: found[0]):
        values = [value for _, value in group]
        joined = "".join(values) if kind in ("text", "reasoning") else values
        found.append((kind, joined))
    return found


@given(TEXTS, strategies.lists(strategies.integers(0, 200), max_size=8), strategies.data())
@example("a\n\n<tool_call>\n{}\n</tool_call>\n", [1, 2, 3, 4], None)
@example("<think>\n</think>\n\n x", [3, 9], None)
def test_the_parts_do_not_depend_on_how_the_text_is_split(
    text: str, cuts: list[int], data: strategies.DataObject | None
) -> None:
    kind = data.draw(strategies.sampled_from(KINDS)) if data else KINDS[0]
    reason: FinishReason = data.draw(strategies.sampled_from(REASONS)) if data else "stop"
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parser = ReplyParser(**kind)
    deltas: list[ReplyDelta] = []
    for start, end in pairwise(places):
        deltas += parser.feed(text[start:end])
    *late, last = parser.finish(record(reason))
    deltas += late
    assert all(delta.reply is None for delta in deltas)
    assert last.reply is not None
    assert last == ReplyDelta(reply=last.reply)

    other = ReplyParser(**kind)
    once = [*other.feed(text), *other.finish(record(reason))][:-1]
    assert parts(deltas) == parts(once)

    reply = last.reply
    assert "".join(delta.text for delta in deltas) == reply.text
    assert "".join(delta.reasoning for delta in deltas) == reply.reasoning
    assert tuple(delta.call for delta in deltas if delta.call) == reply.calls
    assert tuple(delta.broken for delta in deltas if delta.broken) == reply.broken
    again = ReplyParser(**kind).parse(text, record(reason))
    assert (reply.text, reply.reasoning) == (again.text, again.reasoning)
    assert list(map(_bare, reply.calls)) == list(map(_bare, again.calls))
    assert list(map(_bare, reply.broken)) == list(map(_bare, again.broken))


def _bare(call: Any) -> Any:
    return replace(call, id="")


@given(TEXTS)
def test_plain_text_is_all_text(text: str) -> None:
    assert whole(text, calling=False, plain=True).text == text


@given(TEXTS)
def test_only_tags_and_white_space_around_them_are_dropped(text: str) -> None:
    reply = whole(text, calling=False)
    if reply.reasoning or text.lstrip().startswith("<think>"):
        rest = text.lstrip().removeprefix("<think>")
        assert rest.startswith(reply.reasoning)
        rest = rest.removeprefix(reply.reasoning).removeprefix("</think>").lstrip()
        assert rest == reply.text
    else:
        assert reply.text == text


@given(TEXTS.filter(lambda text: "<" not in text))
def test_text_without_a_tag_is_not_held_back_except_line_breaks(text: str) -> None:
    parser = ReplyParser(calling=True)
    seen = "".join(delta.text for delta in parser.feed(text))
    assert seen == (text.rstrip("\n") if text.strip() else "")


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    max_leaves=5,
)


@settings(max_examples=40)
@given(
    strategies.lists(
        strategies.tuples(
            strategies.text(min_size=1), strategies.dictionaries(strategies.text(), JSON)
        ),
        max_size=3,
    ),
    strategies.sampled_from(["", "Text.", "é\nmore"]),
)
def test_calls_are_parsed_as_they_were_written(
    calls: list[tuple[str, dict[str, Any]]], text: str
) -> None:
    """Arguments may contain the tags: JSON escapes their line breaks."""
    written = "\n".join([*([text] if text else []), *(write_call(*call) for call in calls)])
    reply = whole(written)
    assert [(call.name, call.arguments) for call in reply.calls] == calls
    assert (reply.text, reply.broken) == (text, ())
    assert reply.finish_reason == ("tool_calls" if calls else "stop")
    assert len({call.id for call in reply.calls}) == len(calls)


def test_tags_within_arguments_are_text() -> None:
    arguments = {"s": "\n</tool_call>\n<tool_call>\n<think>", "</tool_call>": "\u2028é"}
    reply = whole(write_call("f", arguments))
    assert [call.arguments for call in reply.calls] == [arguments]


@pytest.mark.parametrize(
    ("reason", "words"),
    [("length", "max_new_tokens"), ("cancelled", "cancelled"), ("stop", "stop string")],
)
def test_a_call_that_was_cut_off_is_broken_with_the_reason(
    reason: FinishReason, words: str
) -> None:
    written = f"Text.\n{CALL}"
    for end in range(written.index("{"), len(written)):
        reply = whole(written[:end], reason)
        assert reply.calls == ()
        (broken,) = reply.broken
        assert words in broken.error
        assert (reply.text, reply.finish_reason) == ("Text.", reason)
        assert broken.arguments in CALL
        if '"f"' in written[:end]:
            assert broken.name == "f"


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "3", "null", '{"name": "f"}', '{"arguments": {}}',
     '{"name": "f", "arguments": 3}', '{"name": "f", "arguments": {"a": }}'],
)  # fmt: skip
def test_invalid_calls_are_broken_and_not_repaired(body: str) -> None:
    reply = whole(f"<tool_call>\n{body}\n</tool_call>")
    assert reply.calls == ()
    assert [broken.error.partition(":")[0] for broken in reply.broken] == ["not a call"]
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize("lead", ["", "\n", "  \n"])
def test_reasoning_is_separate_from_the_text(lead: str) -> None:
    reply = whole(f"{lead}<think>\nHm < 3.\n</think>\n\n The answer.\n{CALL}")
    assert (reply.reasoning, reply.text) == ("\nHm < 3.\n", "The answer.")
    assert len(reply.calls) == 1
    opened = whole("Hm.\n</think>\nYes.", thinking=True)
    assert (opened.reasoning, opened.text) == ("Hm.\n", "Yes.")
    endless = whole("<think>Hm. </thi", "length")
    assert (endless.reasoning, endless.text) == ("Hm. </thi", "")
    later = whole("Text. <think>no</think>")
    assert (later.reasoning, later.text) == ("", "Text. <think>no</think>")


def test_usage_and_fusion_of_a_reply_are_plain_json() -> None:
    reply = whole("x")
    assert reply.usage == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert FusionRecord.model_validate(json.loads(json.dumps(reply.fusion))) == reply.record


def test_tags_that_are_control_tokens_separate_reasoning_and_text() -> None:
    """As in Qwen 3, whose chat template has them."""
    own = fusing.bpe(controls=("<end>", "<think>", "</think>"))
    opens, closes = own.controls["<think>"], own.controls["</think>"]
    ids = [opens, *own.encode("Hm."), closes, *own.encode("\n\nYes.")]
    text, _ = detokenize(ids, own, ())
    assert text == "<think>Hm.</think>\n\nYes."
    assert own.decode(ids) == b"Hm.\n\nYes."


def test_a_call_that_a_stop_string_ends_within_its_tag_is_broken() -> None:
    parser = ReplyParser(calling=True)
    found = parser.parse("Well.\n<tool_call>", record("stop"))
    assert (found.text, len(found.calls), len(found.broken)) == ("Well.", 0, 1)


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_a_call_that_is_cut_inside_its_tag_is_no_text(reason: FinishReason) -> None:
    tag = "<tool_call>\n"
    for end in range(1, len(tag) + 1):
        forced = whole(tag[:end], reason, forced=True)
        (broken,) = forced.broken
        assert (forced.text, forced.calls, broken.text) == (
            "",
            (),
            tag[:end].rstrip("\n") if end < len(tag) else tag,
        )
        assert "not complete" in broken.error
        later = whole(f"{CALL}\n{tag[:end]}", reason, forced=True)
        assert (later.text, len(later.calls), len(later.broken)) == ("", 1, 1)
        if end > 1:
            free = whole(f"Well.\n{tag[:end]}", reason)
            assert (free.text, len(free.broken)) == ("Well.", 1)
    assert len(whole("", reason, forced=True).broken) == 1
    assert whole(CALL, reason, forced=True).broken == ()
    assert whole("a <", reason).text == "a <"
    assert whole("a <tool", "stop").text == "a <tool"


def test_the_raw_text_of_a_broken_call_is_kept() -> None:
    (broken,) = whole(CALL[:30], "length").broken
    assert broken.text == CALL[:30]
    (broken,) = whole("<tool_call>\n[]\n</tool_call>").broken
    assert broken.text == "<tool_call>\n[]\n</tool_call>"


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "f", "arguments": ' + '{"a": ' * 200_000,
        '{"name": "f", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": -Infinity}}',
        '{"name": "f", "arguments": {"a": "\\ud800"}}',
        '{"name": "f", "arguments": [["a", 1]]}',
        '{"name": 7, "arguments": {}}',
        '{"name": null, "arguments": {}}',
        '{"name": "f", "arguments": {"a": ' + "9" * 10_000 + "}}",
        "\x00",
        "\ud800",
        '{"name": "f", "arguments": {}} {}',
    ],
    ids=lambda body: body[:40],
)
def test_hostile_calls_are_broken_or_read(body: str) -> None:
    reply = whole(f"Text.\n<tool_call>\n{body}\n</tool_call>After.")
    assert (reply.text, reply.calls) == ("Text.After.", ())
    assert [b.error.partition(":")[0] for b in reply.broken] == ["not a call"]


def test_unicode_escapes_and_nested_json_are_arguments() -> None:
    body = '{"name": "f", "arguments": {"a": "\\u00e9\\ud83d\\ude00", "b": "{\\"c\\": [1]}"}}'
    (call,) = whole(f"<tool_call>\n{body}\n</tool_call>").calls
    assert call.arguments == {"a": "é😀", "b": '{"c": [1]}'}


def test_a_call_that_its_tool_refuses_is_broken() -> None:
    parser = ReplyParser(calling=True, problem=lambda name, arguments: f"{name} {len(arguments)}")
    (broken,) = parser.parse(CALL, record()).broken
    assert (broken.name, broken.error) == ("f", "f 1")


@settings(deadline=None, max_examples=30)
@given(strategies.sampled_from(["<tool_call>\n", "<think>", "\n", "<", "</tool_call>", "{", '"']))
def test_long_repetitions_are_read_in_time(bit: str) -> None:
    parser = ReplyParser(calling=True)
    for _ in range(2000):
        for _ in parser.feed(bit):
            pass
    list(parser.finish(record("length")))
