"""Answers that reach the end of a member's context window end there, and keep their text."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.errors import PromptError
from packfuse.generation.output.result import Answer
from packfuse.models.hf_member import HFMember
from packfuse.tools import Turn
from tests.support import pico, small
from tests.support.scripted import TEMPLATE

PROMPT = "hello the tree"
LONG = 400
ROOM = {"long": 40, "short": 48}
"""The text of an answer takes more tokens of the second member."""

DECODING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"temperature": 1.2, "seed": 5},
    "several": {"do_sample": True, "num_return_sequences": 3, "seed": 6},
    "lookup": {"draft": "lookup"},
    "members": {"draft": "members"},
    "reference": {"draft": "reference"},
    "transformers_lookup": {"prompt_lookup_num_tokens": 4},
    "no_cache": {"use_cache": False},
    "unite": {"fusion": "unite"},
    "floor": {"min_new_tokens": LONG - 1},
}


def pack(windows: dict[str, int], template: str | None = None, **changes: Any) -> Pack:
    """The two random models of `small_pack` with these windows; the same weights for all."""
    members = []
    for seed, (name, window) in enumerate(windows.items()):
        own = small.vocabulary(name, template=template)
        model = pico.tiny_model(own.tokenizer, seed=seed, context=window)  # type: ignore[arg-type]
        members.append(HFMember(name, model, own))
    return Pack(members, progress=False, **{"reference": "long", "prefix_cache": 0, **changes})


@functools.cache
def narrow() -> Pack:
    return pack(ROOM)


@functools.cache
def wide() -> Pack:
    return pack(dict.fromkeys(ROOM, 2048))


def readable(prompt: str, ids: tuple[int, ...], windows: dict[str, int] = ROOM) -> bool:
    """Whether all members can read a prompt and the ids that follow it."""
    text = prompt.encode() + small.vocabulary("long").decode(ids)
    return all(
        len(small.vocabulary(name).encode_bytes(text)) <= window for name, window in windows.items()
    )


def check(prompt: str, answer: Answer, whole: Answer) -> None:
    """The answer is the longest beginning of `whole` of which all but the last token is read."""
    count = len(answer.token_ids)
    assert answer.token_ids == whole.token_ids[:count]
    assert readable(prompt, answer.token_ids[:-1])
    assert answer.text
    if answer.record.finish_reason == "length":
        assert not readable(prompt, answer.token_ids)
        (note,) = [note for note in answer.record.notes if "no more room" in note]
        assert "'short'" in note or "'long'" in note
    else:
        assert answer.token_ids == whole.token_ids


def as_list(found: Any) -> list[Answer]:
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("decoding", DECODING)
def test_an_answer_ends_where_a_member_has_no_more_room(decoding: str) -> None:
    arguments = {"max_new_tokens": LONG, **DECODING[decoding]}
    answers = as_list(narrow().generate(PROMPT, **arguments))
    assert any(answer.record.finish_reason == "length" for answer in answers)
    for answer, whole in zip(answers, as_list(wide().generate(PROMPT, **arguments)), strict=True):
        check(PROMPT, answer, whole)


def test_the_other_rows_of_a_batch_go_on() -> None:
    prompts = ["he", PROMPT * 2, "the hello"]
    for extra in ({}, {"num_beams": 2, "max_new_tokens": 24}):
        arguments = {"max_new_tokens": LONG, **extra}
        together = narrow().generate(prompts, **arguments)
        alone = [narrow().generate(prompt, **arguments) for prompt in prompts]
        assert [a.token_ids for a in together] == [a.token_ids for a in alone]
        assert [a.record.finish_reason for a in together] == [a.record.finish_reason for a in alone]
    lengths = {len(answer.token_ids) for answer in narrow().generate(prompts, max_new_tokens=LONG)}
    assert len(lengths) > 1


@pytest.mark.parametrize("returned", [1, 3])
def test_full_beams_count_as_finished(returned: int) -> None:
    answers = as_list(
        narrow().generate(PROMPT, num_beams=3, num_return_sequences=returned, max_new_tokens=LONG)
    )
    assert len({answer.token_ids for answer in answers}) == returned
    for answer in answers:
        assert readable(PROMPT, answer.token_ids[:-1])
        full = not readable(PROMPT, answer.token_ids)
        assert (answer.record.finish_reason == "length") == full
        assert any("no more room" in note for note in answer.record.notes) == full


@pytest.mark.parametrize("extra", [{}, {"draft": "lookup"}, {"draft": "members"}])
def test_a_stream_ends_with_the_same_text(extra: dict[str, Any]) -> None:
    answer = narrow().generate(PROMPT, max_new_tokens=LONG)
    chunks = list(narrow().stream(PROMPT, max_new_tokens=LONG, **extra))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    record = chunks[-1].record
    assert record is not None
    assert record.finish_reason == "length"
    assert record.usage == answer.record.usage


def test_a_constrained_answer_keeps_its_beginning() -> None:
    pattern = {"type": "string", "minLength": 300}
    answer = narrow().generate(PROMPT, constraint=pattern, max_new_tokens=LONG)
    assert answer.record.finish_reason == "length"
    assert answer.text.startswith('"')
    assert not readable(PROMPT, answer.token_ids)


def test_a_turn_ends_with_length() -> None:
    chat = [{"role": "user", "content": "hello"}]
    reply = Turn(pack({"long": 60, "short": 60}, TEMPLATE), chat, max_new_tokens=LONG).answer()
    assert (reply.finish_reason, bool(reply.text)) == ("length", True)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"use_cache": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"eos_token_id": None},
    ],
    ids=str,
)
def test_the_transformers_model_ends_like_a_shorter_answer(extra: dict[str, Any]) -> None:
    """As with any other end: padding follows, and nothing is raised."""
    model, own = narrow().model, small.vocabulary("long")
    ids = torch.tensor([own.encode(PROMPT)])
    with pytest.warns(UserWarning, match="no more room"):
        found: Any = model.generate(ids, max_new_tokens=LONG, **extra)
    rows = (found if isinstance(found, torch.Tensor) else found.sequences)[:, ids.shape[1] :]
    for row in rows.tolist():
        ends = (*own.end_ids, own.tokenizer.pad_token_id)
        answer = tuple(row[: next((i for i, t in enumerate(row) if t in ends), len(row))])
        assert readable(PROMPT, answer[:-1])


def test_a_call_with_room_gives_no_warning() -> None:
    ids = torch.tensor([small.vocabulary("long").encode(PROMPT)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        narrow().model.generate(ids, max_new_tokens=3)


def test_a_prompt_that_fills_the_window_is_answered_with_one_token() -> None:
    prompt = "x" * ROOM["long"]
    answer = narrow().generate(prompt, max_new_tokens=9)
    assert (len(answer.token_ids), answer.record.finish_reason) == (1, "length")
    with pytest.raises(PromptError, match="41 tokens long for member 'long', which can read 40"):
        narrow().generate(prompt + "x")


def test_a_score_without_room_names_the_member() -> None:
    assert narrow().score("x" * 39, "yz") < 0
    with pytest.raises(PromptError, match="41 tokens long for member 'long'"):
        narrow().score("x" * 39, "yzz")
