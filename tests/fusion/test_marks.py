"""Marks that are a control token of one member and text of another meet, and nothing is lost."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from packfuse import Pack
from packfuse.alignment.spelling import spelled_bytes
from packfuse.fusion.rules import rules
from packfuse.text.vocabulary import Vocabulary
from tests.support import marked, pico
from tests.support.marked import Plan

OWN = ("Hello", "Hi", "too", "then")
# The same marks in many tokens and in few, with ends that merge with what follows, and in the
# owner's own text tokens.
SPELLED = {
    "<think>": ("Hello", "Hi", "think"),
    "</think>": ("Hello", "Hi", "</think", ">\n"),
    "<tool_call>": OWN,
    "<|channel|>": ("Hello", "Hi", "<|", "channel", "|>\n"),
    "[TOOL_CALLS]": ("Hello", "Hi"),
    "<｜tool▁sep｜>": ("Hello", "Hi", "<｜tool"),
}
AFTER = "\nHello"
ALIGNMENTS = ("bytes", "prefix", "mined", "mined text")
every_rule = pytest.mark.parametrize("rule", list(rules().parts))
every_mark = pytest.mark.parametrize("mark", SPELLED)
arrangements = pytest.mark.parametrize(
    ("order", "reference"),
    list(itertools.product([(0, 1), (1, 0)], [0, 1])),
    ids=lambda value: str(value).replace(", ", ""),
)


def alignment_of(name: str) -> Any:
    return {"name": "mined", "inputs": "text"} if name == "mined text" else name


def own_mark(mark: str) -> str:
    return marked.OPEN + mark + marked.CLOSE


def follow(whole: str, begun: str) -> Mapping[str, float]:
    """Goes on with `whole`, and then ends."""
    data, read = whole.encode(), begun.encode(errors="surrogateescape")
    if not data.startswith(read):
        return {"Hi": 1.0}
    return {data[len(read) :].decode(errors="surrogateescape"): 0.95, "Hi": 0.05}


def owner_plan(mark: str, p: float, before: str = "") -> Plan:
    """Wants its control token `mark` after `before`; it is lost after a spelled one."""

    def plan(answer: str) -> Mapping[str, float]:
        if len(answer) < len(before):
            return follow(before, answer)
        if answer == before:
            return {mark: p, "Hi": 1 - p}
        if answer.startswith(before + own_mark(mark)):
            return follow(AFTER, answer.removeprefix(before + own_mark(mark)))
        return {"Hi": 0.99, "": 0.01}

    return plan


def speller_plan(mark: str, p: float, before: str = "") -> Plan:
    """Wants `mark` as text after `before`."""

    def plan(answer: str) -> Mapping[str, float]:
        if answer == before:
            return {mark: p, "Hi": 1 - p}
        return {"Hi": 1.0} if marked.OPEN in answer else follow(before + mark + AFTER, answer)

    return plan


def pack_of(
    mark: str, order: tuple[int, int], reference: int, *, before: str = "", **settings: Any
) -> Pack:
    """A member with `mark` as one token, and one that spells it; the reference by its place."""
    owner = marked.small(OWN, (mark,), "owner")
    speller = marked.small(SPELLED[mark], (), "speller")
    both = [(owner, owner_plan(mark, 0.6, before)), (speller, speller_plan(mark, 0.9, before))]
    return marked.planned_pack([both[k] for k in order], reference, **settings)


def check_written(pack: Pack, mark: str, order: tuple[int, int], before: str, **settings: Any):
    text, read = marked.written(pack, max_new_tokens=40, **settings)
    assert text == before + mark + AFTER
    assert read[order.index(0)] == before + own_mark(mark) + AFTER
    assert read[order.index(1)] == before + mark + AFTER


@every_mark
@every_rule
@arrangements
def test_a_mark_that_all_members_want_is_written_and_read_as_each_has_it(
    order: tuple[int, int], reference: int, rule: str, mark: str
) -> None:
    before = "Hi" if mark.startswith("</") else ""
    pack = pack_of(mark, order, reference, before=before, fusion=rule)
    check_written(pack, mark, order, before)


@pytest.mark.parametrize("alignment", ALIGNMENTS[1:])
@every_rule
@arrangements
def test_marks_meet_in_every_alignment(
    order: tuple[int, int], reference: int, rule: str, alignment: str
) -> None:
    for mark in ("<think>", "<tool_call>"):
        pack = pack_of(mark, order, reference, fusion=rule, alignment=alignment_of(alignment))
        if alignment == "mined" and mark == "<think>":
            # Members are fed the nearest single tokens, so only the first token can be compared.
            first = pack.generate(marked.CHAT, max_new_tokens=1).token_ids[0]
            spelled = spelled_bytes(pack.model.engine.reference, first)
            assert spelled
            assert mark.encode().startswith(spelled)
        else:
            check_written(pack, mark, order, "")


@pytest.mark.parametrize("mark", ["<think>", "<|channel|>", "<turn>"])
@every_rule
@arrangements
@pytest.mark.parametrize("faint", [marked.FAINT, -1e4], ids=["faint", "zero"])
def test_mass_on_a_control_token_never_turns_a_whisper_into_a_vote(
    faint: float, order: tuple[int, int], reference: int, rule: str, mark: str
) -> None:
    one = marked.small(OWN, (mark,), "one"), lambda _: {mark: 0.999, "Hi": 0.001}
    other = marked.small(("Hello", "Hi"), (), "other"), lambda _: {"Hello": 0.9, "Hi": 0.1}
    both = [(one, other)[k] for k in order]
    for family in (False, True):
        if family:
            both = [(one, (marked.small(OWN, (), "family"), other[1]))[k] for k in order]
        if family and rule == "packllm" and mark == "<turn>" and order[reference] == 0:
            # The reference's own turn is impossible for the other, and so in the product.
            continue
        pack = marked.planned_pack(both, reference, faint, fusion=rule)
        assert marked.written(pack, max_new_tokens=1)[0] != "Hi"
        if mark == "<turn>" and order[reference] == 1:
            assert marked.written(pack, max_new_tokens=1)[0] == "Hello"


@pytest.mark.parametrize("alignment", ALIGNMENTS[1:])
@every_rule
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_what_cannot_be_carried_is_an_abstention_in_every_alignment(
    order: tuple[int, int], rule: str, alignment: str
) -> None:
    one = marked.small(OWN, ("<turn>",), "one"), lambda _: {"<turn>": 0.999, "Hi": 0.001}
    other = marked.small(("Hello", "Hi"), (), "other"), lambda _: {"Hello": 0.9, "Hi": 0.1}
    both = [(one, other)[k] for k in order]
    pack = marked.planned_pack(both, order.index(1), fusion=rule, alignment=alignment_of(alignment))
    assert marked.written(pack, max_new_tokens=1)[0] == "Hello"


@arrangements
def test_a_spelled_mark_in_a_prompt_stays_text(order: tuple[int, int], reference: int) -> None:
    """Whatever the members would have written in its place."""
    pack = pack_of("<think>", order, reference)
    chat = [{"role": "user", "content": "[assistant]:<think>"}]
    pack.generate(chat, max_new_tokens=1)
    pack.generate("[assistant]:<think>", max_new_tokens=2)
    ids = torch.tensor([pack.model.engine.reference.encode("[assistant]:<think>")])
    pack.model(ids)
    models: list[Any] = [member.model for member in pack.members]
    seen = [read for model in models for read in model.history]
    assert any(read.startswith("<think>") for read in seen)
    assert not any(marked.OPEN in read for read in seen)


@arrangements
def test_a_mark_that_a_member_did_not_want_stays_text(
    order: tuple[int, int], reference: int
) -> None:
    """The owner prefers to spell it, as in a text about the mark."""
    mark = "<think>"

    def spells(answer: str) -> Mapping[str, float]:
        return {"<": 0.5, mark: 0.4, "Hi": 0.1} if not answer else follow(mark + AFTER, answer)

    owner = marked.small(OWN, (mark,), "owner"), spells
    speller = marked.small(SPELLED[mark], (), "speller"), speller_plan(mark, 0.9)
    pack = marked.planned_pack([(owner, speller)[k] for k in order], order.index(1))
    text, read = marked.written(pack, max_new_tokens=40)
    assert text == mark + AFTER
    assert read[order.index(0)] == mark + AFTER


@every_mark
@arrangements
@pytest.mark.parametrize("way", ["draft", "beams", "batch", "stream"])
def test_every_way_of_decoding_reads_the_same_marks(
    way: str, order: tuple[int, int], reference: int, mark: str
) -> None:
    pack = pack_of(mark, order, reference)
    if way == "batch":
        answers = pack.generate([marked.CHAT] * 2, max_new_tokens=40)
        alone = pack.generate(marked.CHAT, max_new_tokens=40)
        assert [answer.token_ids for answer in answers] == [alone.token_ids] * 2
    elif way == "stream":
        chunks = list(pack.stream(marked.CHAT, max_new_tokens=40))
        assert "".join(c.text for c in chunks) == pack.generate(marked.CHAT, max_new_tokens=40).text
    else:
        settings: dict[str, Any] = {"draft": "lookup"}
        if way == "beams":
            # The probability of the whole answer, however long it is.
            settings = {"num_beams": 2, "length_penalty": 0.0}
        assert marked.written(pack, max_new_tokens=40, **settings)[0] == mark + AFTER


REAL = [
    ("deepseek", "mistral", "<｜tool▁calls▁begin｜>"),
    ("tekken", "mistral", "[TOOL_CALLS]"),
    ("qwen3", "llama3_1", "<think>"),
    ("qwen3", "llama3_1", "</think>"),
    ("qwen3", "llama3_1", "<tool_call>"),
    ("gptoss", "qwen3", "<|channel|>"),
    ("gptoss", "qwen3", "<|message|>"),
]


@functools.cache
def real(name: str) -> Vocabulary:
    """A tokenizer from a package, or from the folder that `PACKFUSE_TOKENIZERS` names."""
    mentioned = sorted({mark for owner, _, mark in REAL if owner == name})
    if name in pico.PACKAGED:
        return marked.with_template(copy.deepcopy(pico.real_tokenizer(name)), mentioned)
    folder = Path(os.environ.get("PACKFUSE_TOKENIZERS", "")) / name
    if "PACKFUSE_TOKENIZERS" not in os.environ or not folder.is_dir():
        pytest.skip(f"set PACKFUSE_TOKENIZERS to a folder with the tokenizer {name!r}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    eos = settings["eos_token"]
    tokenizer.eos_token = eos if isinstance(eos, str) else eos["content"]
    return marked.with_template(tokenizer, mentioned)


@pytest.mark.parametrize(("owner", "speller", "mark"), REAL, ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
def test_marks_of_real_tokenizers_meet(
    order: tuple[int, int], owner: str, speller: str, mark: str
) -> None:
    before = "Hi" if mark in ("</think>", "<|message|>") else ""
    both = [
        (real(owner), owner_plan(mark, 0.6, before)),
        (real(speller), speller_plan(mark, 0.9, before)),
    ]
    assert mark.encode() in real(owner).marks.values()
    for reference in (0, 1):
        pack = marked.planned_pack([both[k] for k in order], reference)
        for rule in rules().parts:
            check_written(pack, mark, order, before, fusion=rule)
