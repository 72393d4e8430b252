"""Replies in the format of gpt-oss, and the marks of reasoning of other models."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies

from packfuse.text.detokenizer import detokenize
from packfuse.text.reply_tags import HARMONY, reasoning_marks
from packfuse.text.vocabulary import Vocabulary
from packfuse.tools import Turn
from packfuse.tools.reply import Reply, ReplyDelta, ReplyParser
from tests.support import fusing
from tests.support.scripted import TEMPLATE
from tests.support.small import scripted_small
from tests.tools.test_reply import CALL, parts, record

ANALYSIS = "<|channel|>analysis<|message|>User greets.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Hello!"
TOOL = (
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "é"}'
)
AS_RENDERED = '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": "é"}'
PREAMBLE = "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"


def read(text: str, reason: Any = "stop", **kind: Any) -> Reply:
    return ReplyParser(**{"calling": True, "harmony": True, **kind}).parse(text, record(reason))


def test_channels_are_reasoning_and_text() -> None:
    reply = read(ANALYSIS + FINAL)
    assert (reply.reasoning, reply.text, reply.calls) == ("User greets.", "Hello!", ())
    only = read("<|channel|>final<|message|>Hello!")
    assert (only.reasoning, only.text) == ("", "Hello!")
    cut = read("<|channel|>analysis<|message|>User gre", "length")
    assert (cut.reasoning, cut.text) == ("User gre", "")
    assert read(ANALYSIS + "<|start|>assist", "length").text == ""
    assert read("Hello!").text == "Hello!"


@pytest.mark.parametrize("call", [TOOL, AS_RENDERED])
@pytest.mark.parametrize("end", ["", "<|call|>"])
def test_a_call_is_a_call(call: str, end: str) -> None:
    reply = read(ANALYSIS + PREAMBLE + call + end)
    assert [(c.name, c.arguments) for c in reply.calls] == [("f", {"a": "é"})]
    assert (reply.reasoning, reply.text) == ("User greets.", "I look.")
    assert reply.finish_reason == "tool_calls"


def test_a_call_that_is_cut_off_or_invalid_is_broken() -> None:
    (broken,) = read(ANALYSIS + TOOL[:-3], "length").broken
    assert (broken.name, broken.arguments) == ("f", '{"a": "')
    assert "max_new_tokens" in broken.error
    (broken,) = read(TOOL + "]").broken
    assert broken.error.startswith("not a call")
    (broken,) = read(TOOL, calling=False).broken
    assert "no tool" in broken.error


def test_calls_in_the_plain_protocol_are_found_in_the_final_channel() -> None:
    reply = read(f"{ANALYSIS}<|start|>assistant<|channel|>final<|message|>So:\n{CALL}")
    assert (reply.text, len(reply.calls)) == ("So:", 1)


BITS = [*HARMONY, "assistant", "analysis", "final", "commentary", " to=functions.f", "x", "\n",
        "{}", "<", "|", ANALYSIS, FINAL, TOOL, CALL, "<think>", "</think>"]  # fmt: skip
TEXTS = strategies.lists(strategies.sampled_from(BITS), max_size=12).map("".join)


@given(TEXTS, strategies.lists(strategies.integers(0, 400), max_size=8))
def test_the_parts_do_not_depend_on_how_the_text_is_split(text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parser = ReplyParser(calling=True, harmony=True)
    deltas: list[ReplyDelta] = []
    for start, end in pairwise(places):
        deltas += parser.feed(text[start:end])
    *late, last = parser.finish(record())
    once = ReplyParser(calling=True, harmony=True)
    whole = [*once.feed(text), *once.finish(record())][:-1]
    assert parts([*deltas, *late]) == parts(whole)
    assert last.reply is not None
    for mark in ("<|channel|>", "<|message|>") if "<|channel|>final<|message|>" in text else ():
        assert mark not in last.reply.reasoning
    for mark in HARMONY:
        assert mark not in last.reply.text


@pytest.mark.parametrize(
    "text",
    [
        "<|message|>Hello!",
        "<|end|>" + FINAL,
        "Hel<|message|>lo!",
        FINAL + "<|constrain|>",
        FINAL.replace("Hel", "Hel<|message|>"),
        "<|return|>Hello!<|return|>",
        "<think><|message|></think>Hello!",
    ],
)
def test_marks_without_a_place_are_no_text(text: str) -> None:
    reply = read(text)
    assert (reply.reasoning, reply.text) == ("", "Hello!")


def test_an_endless_header_is_text_in_the_end() -> None:
    assert len(read("<|channel|>" + "x" * 5000).text) > 4000


def harmony_vocabulary() -> Vocabulary:
    return fusing.bpe("hello", name="oss", controls=("<|return|>", *HARMONY[:5], "<|call|>"))


def test_the_control_tokens_are_spelled_in_answers_and_both_ends_end_them() -> None:
    own = harmony_vocabulary()
    assert own.speaks_harmony
    assert {own.spell(index) for index in own.end_ids} == {"<|return|>", "<|call|>"}
    marks = own.controls
    ids = [
        marks["<|channel|>"], *own.encode("analysis"), marks["<|message|>"], *own.encode("Hm."),
        marks["<|end|>"], marks["<|start|>"], *own.encode("assistant"), marks["<|channel|>"],
        *own.encode("final"), marks["<|message|>"], *own.encode("hello"), marks["<|return|>"],
    ]  # fmt: skip
    text, _ = detokenize(ids, own, ())
    assert (read(text).reasoning, read(text).text) == ("Hm.", "hello")
    plain = fusing.bpe(controls=("<end>", "<|end|>", "<|start|>"))
    assert not plain.speaks_harmony
    assert plain.decode_answer([plain.controls["<|end|>"]]) == b""


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<reasoning>", "</reasoning>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_reasoning_stands_between_the_marks_of_the_template(opening: str, closing: str) -> None:
    template = TEMPLATE + f"{{# {opening}...{closing} #}}"
    assert (opening, closing) in reasoning_marks(template, ())
    assert (opening, closing) in reasoning_marks("", [opening, closing])
    chat = [{"role": "user", "content": "?"}]
    pack = scripted_small(lambda _: f"{opening}Hm.{closing}\n\nYes.", template=template)
    turn = Turn(pack, chat)
    assert (turn.answer().reasoning, turn.answer().text) == ("Hm.", "Yes.")
    *_, last = turn.stream()
    assert last.reply is not None
    assert (last.reply.reasoning, last.reply.text) == ("Hm.", "Yes.")


def test_a_template_may_end_with_any_of_these_marks() -> None:
    template = TEMPLATE + "{# </seed:think> #}<seed:think>"

    def script(_: str) -> str:
        return "<seed:think>Hm.</seed:think>Yes."

    pack = scripted_small(script, template=template)
    reply = Turn(pack, [{"role": "user", "content": "?"}]).answer()
    assert (reply.reasoning, reply.text) == ("Hm.", "Yes.")


@pytest.mark.parametrize(
    "template", ["{{ messages[thinking] }}", "<think>", "{% if think %}", "[THINK]", ""]
)
def test_an_opening_without_a_closing_is_no_mark(template: str) -> None:
    assert [mark.opening for mark in reasoning_marks(template, ())] == ["<think>"]
