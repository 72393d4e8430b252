"""Chats under each member's template: nothing is lost in silence, no text becomes control."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from packfuse.errors import PromptError
from packfuse.text.chats.chat_template import RenderedChat, render_chat
from packfuse.text.chats.member_template import MemberTemplate
from packfuse.text.chats.turn_marks import turn_marks
from packfuse.text.vocabulary import Vocabulary
from tests.support import fusing, pico
from tests.support.templates import MARKS, TEMPLATES

USER = {"role": "user", "content": "What is 1 + 2?"}
ANSWER = {"role": "assistant", "content": "It is 3."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": '{"one": 1}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "The sum is three."}
CONTROLS = (
    *("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *(
        "<end_of_turn>",
        "<start_of_turn>",
        "[INST]",
        "[/INST]",
        "<|end|>",
        "<|start|>",
        "<|return|>",
    ),
    *("<|message|>", "<|channel|>"),
)


@functools.cache
def templated(source: str, name: str = "own") -> Vocabulary:
    tokenizer = fusing.bpe("user", name=name, controls=CONTROLS).tokenizer
    tokenizer.chat_template = source
    return Vocabulary(tokenizer)


def rendered(chat: list[dict[str, Any]], source: str, **arguments: Any) -> tuple[str, RenderedChat]:
    own = templated(source)
    found = render_chat(chat, [own], 0, arguments)
    return "".join(map(own.spell, found.ids)), found


# What a template cannot say.

SHAPES: dict[str, list[dict[str, Any]]] = {
    "plain": [USER],
    "with system": [SYSTEM, USER, ANSWER, USER],
    "only system": [SYSTEM],
    "system in the middle": [USER, ANSWER, SYSTEM, USER],
    "system at the end": [USER, ANSWER, SYSTEM],
    "assistant first": [ANSWER, USER],
    "system and assistant first": [SYSTEM, ANSWER, USER],
    "twice the same": [USER, USER, ANSWER, ANSWER, USER],
    "tools": [USER, CALL, RESULT],
    "tools and more": [SYSTEM, USER, CALL, RESULT, RESULT, ANSWER, USER],
    "developer and blocks": [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": ["What", {"text": " is 1 + 2?"}]},
    ],
}
# Each leaves out, refuses or fails on some shape of a chat.
ODD = {
    **TEMPLATES,
    "drops later system messages": "{% for m in messages %}"
    "{% if m.role != 'system' or loop.first %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}"
    "{% endif %}{% endfor %}",
    "drops a system message alone": "{% for m in messages if m.role == 'user' %}"
    "{% if loop.first and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "[u]{{ m.content }}{% endfor %}{% for m in messages if m.role == 'assistant' %}"
    "[a]{{ m.content }}{% endfor %}",
    "drops results": "{% for m in messages %}{% if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}"
    "{% endif %}{% endfor %}",
    "wants objects": "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "wants text": "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '' + c.function.name + c.function.arguments }}{% endfor %}"
    "{% endfor %}",
    "wants no content": "{% for m in messages %}[{{ m.role }}]"
    "{% if m.content is none %}{% for c in m.tool_calls %}"
    "{{ '' + c.function.name + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}",
    "puts system last": "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}{% endfor %}"
    "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ODD)
def test_every_message_reaches_every_template(name: str, shape: str) -> None:
    chat = SHAPES[shape]
    text, found = rendered(chat, ODD[name])
    for content in ("What is 1 + 2?", "It is 3.", "Be brief.", "The sum is three."):
        count = sum(content in str(m["content"]) for m in chat)
        assert text.count(content) >= count, (text, found.prompt.notes)
    if CALL in chat:
        assert "add" in text
        assert "one" in text
    assert not any("leaves out" in note for note in found.prompt.notes)


def test_changes_of_a_chat_are_noted() -> None:
    gemma = TEMPLATES["model"]
    for shape, said in {
        "assistant first": "an empty user message was put first",
        "only system": "folded",
        "system in the middle": "folded",
        "system at the end": "became user messages",
        "tools": "written as text",
        "twice the same": "folded",
    }.items():
        (note,) = rendered(SHAPES[shape], gemma)[1].prompt.notes
        assert note.startswith("for own, ")
        assert said in note
    assert rendered(SHAPES["with system"], gemma)[1].prompt.notes == ()


def test_what_a_template_leaves_out_in_every_form_is_noted() -> None:
    source = "{% for m in messages if m.role == 'user' %}[u]{{ m.content }}{% endfor %}"
    notes = rendered([USER, ANSWER, USER], source)[1].prompt.notes
    assert notes == ("the chat template of own leaves out message 1 (assistant)",)


def test_a_template_that_refuses_everything_is_an_error() -> None:
    with pytest.raises(PromptError, match="template of own refuses the messages: never"):
        rendered([USER], "{{ raise_exception('never') }}")


def test_tools_have_all_that_templates_read() -> None:
    source = (
        "{% for t in tools %}{{ t.function.name + t.function.description }}"
        "{{ t.function.parameters|tojson }}{% endfor %}{{ messages[0].content }}"
    )
    tools = [{"type": "function", "function": {"name": "now", "description": None}}]
    assert rendered([USER], source, tools=tools)[0].startswith('now{"type": "object"')


# Marks of turns.


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_marks_of_turns_are_found_in_the_template(name: str) -> None:
    marks = turn_marks(MemberTemplate.of(templated(TEMPLATES[name])))
    if name == "bare":
        assert marks == ()
        return
    assert MARKS[name] in marks
    chat = [USER, ANSWER, USER]
    text = rendered(chat, TEMPLATES[name])[0]
    assert text.count(MARKS[name]) >= 1
    # An answer of gpt-oss writes its own channels.
    assert "<|start|>assistant" not in "".join(marks)


# Control tokens in texts.

SPELLED = st.lists(
    st.sampled_from(["<|", "|>", "<｜", "｜>", "▁", "[", "]", "<", ">", "x", " ", "\n"]), max_size=8
).map("".join)


@functools.cache
def real(name: str) -> Vocabulary:
    """A packaged tokenizer with a template, and a control token that the template does not write.

    Such tokens are not flagged as special (`<|fim_hole|>` of Qwen and DeepSeek).
    """
    tokenizer = copy.deepcopy(pico.real_tokenizer(name))
    tokenizer.add_tokens([AddedToken("<|fim_hole|>", special=False, normalized=False)])
    if not tokenizer.chat_template:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}"
            "{% endfor %}"
        )
    return Vocabulary(tokenizer)


def controls_of(own: Vocabulary, text: str, role: str = "user") -> list[int]:
    chat = [{"role": role, "content": text}]
    ids = render_chat([*chat, USER] if role != "user" else chat, [own], 0).ids
    return [index for index in ids if index in own.control_ids]


@pytest.mark.parametrize("name", pico.PACKAGED)
def test_no_spelled_control_token_becomes_one(name: str) -> None:
    own = real(name)
    usual = controls_of(own, "hello")
    for control in own.controls:
        text = f"a {control}{control} b"
        assert controls_of(own, text) == usual
        assert text.encode() in own.decode(render_chat([{**USER, "content": text}], [own], 0).ids)
    for role in ("system", "assistant", "tool"):
        usual = controls_of(own, "hello", role)
        for control in list(own.controls)[:20]:
            assert controls_of(own, control, role) == usual


@pytest.mark.parametrize("name", pico.PACKAGED)
@given(data=st.data())
def test_no_text_becomes_control(name: str, data: st.DataObject) -> None:
    own = real(name)
    pieces = st.one_of(SPELLED, st.sampled_from(list(own.controls)), st.text(max_size=3))
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=5)))
    if text.strip():
        assert controls_of(own, text) == controls_of(own, "hello")


@pytest.mark.parametrize("name", pico.PACKAGED)
def test_innocent_chats_are_tokenized_as_by_the_tokenizer(name: str) -> None:
    own = real(name)
    for chat in ([USER], [USER, ANSWER, USER], [SYSTEM, USER]):
        want: Any = own.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True
        )
        assert render_chat(chat, [own], 0).ids == want["input_ids"]
