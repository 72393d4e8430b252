"""The prompts of chats with tools and results, and their beginning of sequence."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_packfuse import ChatPackFuse
from langchain_packfuse.messages import turn_of
from pydantic import BaseModel

from packfuse import Pack
from tests.support.scripted import scripted_pack


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@pytest.fixture(scope="module")
def echo() -> Pack:
    """Answers with the rendered chat in capitals."""
    return scripted_pack(lambda prompt: prompt.lstrip().upper())


def rendered(pack: Pack, messages: Any, **settings: Any) -> str:
    model = ChatPackFuse(pack=pack, max_tokens=400)
    if "tools" in settings:
        return str(model.bind_tools(**settings).invoke(messages).content)
    return str(model.invoke(messages).content)


def test_tools_reach_the_template(echo: Pack) -> None:
    text = rendered(echo, "Hi", tools=[multiply])
    assert '"NAME": "MULTIPLY", "DESCRIPTION": "MULTIPLY TWO INTEGERS."' in text
    assert text.endswith("[USER] HI\n")
    assert "MULTIPLY" not in rendered(echo, "Hi", tools=[multiply], tool_choice="none")


def test_a_history_of_calls_and_results_reaches_the_template(echo: Pack) -> None:
    call = {"name": "multiply", "args": {"a": 3, "b": 4}, "id": "1"}
    history = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "3 times"}, {"type": "text", "text": "4?"}]),
        AIMessage("Let me see.", tool_calls=[call, {**call, "id": "2"}]),
        ToolMessage("12", tool_call_id="1"),
        ToolMessage("twelve", tool_call_id="2", status="error"),
    ]
    assert rendered(echo, history) == (
        "[SYSTEM] BE BRIEF.\n[USER] 3 TIMES\n4?\n[ASSISTANT] LET ME SEE.\n"
        '<TOOL_CALL>\n{"NAME": "MULTIPLY", "ARGUMENTS": {"A": 3, "B": 4}}\n</TOOL_CALL>\n'
        '<TOOL_CALL>\n{"NAME": "MULTIPLY", "ARGUMENTS": {"A": 3, "B": 4}}\n</TOOL_CALL>\n'
        '[USER] <TOOL_RESPONSE>\n{"NAME": "MULTIPLY", "CONTENT": "12"}\n</TOOL_RESPONSE>\n'
        '<TOOL_RESPONSE>\n{"NAME": "MULTIPLY", "CONTENT": "TWELVE"}\n</TOOL_RESPONSE>\n'
    )


def test_an_answer_does_not_repeat_the_prompt() -> None:
    pack = scripted_pack(lambda prompt: "Paris.")
    model = ChatPackFuse(pack=pack)
    assert model.invoke("Capital of France?").content == "Paris."
    assert "".join(str(chunk.content) for chunk in model.stream("Capital?")) == "Paris."


def test_a_rendered_chat_begins_once(starter: Pack) -> None:
    """The members' templates have their own beginning of sequence, or none."""
    turn = turn_of(starter, [HumanMessage("Hi")])
    for member, name in zip(starter.members, starter.names, strict=True):
        prompt = starter.weigh(turn.messages)
        expected = member.vocabulary.prefix_ids
        if member.tokenizer.chat_template:
            ids = member.tokenizer.apply_chat_template(
                turn.messages, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            record = starter.generate(turn.messages, max_new_tokens=1).record
            assert record.usage.prompt_tokens_by_member[name] == len(ids)
            assert ids[:2].count(expected[0] if expected else -1) <= 1
        assert prompt is not None


def test_a_system_message_that_a_template_refuses_is_folded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pack = scripted_pack(lambda prompt: prompt.lstrip().upper())
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    for member in pack.members:
        own = member.tokenizer.chat_template
        monkeypatch.setattr(member.tokenizer, "chat_template", refusing + own)
    answer = ChatPackFuse(pack=pack).invoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert answer.content == "[USER] BE BRIEF.\n\nHI\n"
    notes = answer.response_metadata["fusion"]["notes"]
    assert any("folded" in note for note in notes)


def test_reasoning_is_separate() -> None:
    pack = scripted_pack(lambda prompt: "<think>\nIt is in\nFrance.</think>\n\nParis.")
    model = ChatPackFuse(pack=pack)
    answer = model.invoke("Capital?")
    assert answer.content == "Paris."
    assert answer.additional_kwargs["reasoning_content"] == "\nIt is in\nFrance."
    assert answer.content_blocks[0]["type"] == "reasoning"
    whole = None
    for chunk in model.stream("Capital?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert (whole.content, whole.additional_kwargs) == (answer.content, answer.additional_kwargs)


def test_calls_in_a_row_and_text_before_them() -> None:
    calls = [f'<tool_call>\n{{"name": "multiply", "arguments": {{"a": {n}, "b": 2}}}}\n</tool_call>'
             for n in (3, 4)]  # fmt: skip
    pack = scripted_pack(lambda prompt: "\n".join(["I will multiply.", *calls]))
    model = ChatPackFuse(pack=pack).bind_tools([multiply])
    answer = model.invoke("3 and 4 times 2?")
    assert answer.content == "I will multiply."
    assert [call["args"] for call in answer.tool_calls] == [{"a": 3, "b": 2}, {"a": 4, "b": 2}]
    assert len({call["id"] for call in answer.tool_calls}) == 2
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    single = ChatPackFuse(pack=pack).bind_tools([multiply], parallel_tool_calls=False)
    assert [call["args"]["a"] for call in single.invoke("3 and 4?").tool_calls] == [3]


def test_nested_schemas() -> None:
    class Point(BaseModel):
        """A point."""

        x: float
        y: float | None = None

    class Path(BaseModel):
        """A path."""

        points: list[Point]
        note: str = ""

    text = '{"points": [{"x": 1.5}, {"x": -2, "y": 0.25}], "note": "a \\"b\\" é"}'
    pack = scripted_pack(lambda prompt: text)
    found = ChatPackFuse(pack=pack).with_structured_output(Path).invoke("Draw")
    assert found == Path.model_validate_json(text)
