"""The traces of an answer: who carried each token, and how the members read the prompt."""

from __future__ import annotations

from typing import Any

import pytest

from packfuse import Answer
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack

TEXT = "hello the true: hello 日本 true"
WEIGHTS = {"long": 0.4, "short": 0.6}


@pytest.mark.parametrize(
    "settings",
    [{}, {"gate": "safe"}, {"draft": "lookup"}, {"fusion": "unite"}, {"seed": 1, "top_k": 0}],
    ids=str,
)
def test_who_carried_a_token(settings: dict[str, Any]) -> None:
    pack = small_pack(context=2048)
    record = pack.generate(
        TEXT,
        max_new_tokens=40,
        trace=True,
        weights=WEIGHTS,
        do_sample="seed" in settings,
        **settings,
    ).record
    steps = record.trace or []
    for step in steps:
        shares = {name: WEIGHTS[name] * step.member_probabilities[name] for name in WEIGHTS}
        best = max(shares, key=lambda name: (shares[name], name == record.reference))
        assert step.carried_by == (best if step.fused else record.reference)
    assert len({step.carried_by for step in steps}) == 2
    assert record.fused == pytest.approx(sum(step.fused for step in steps) / len(steps))
    assert (record.fused < 1) == ("gate" in settings)


def test_with_roles_the_one_that_wrote_a_token_carried_it() -> None:
    pack = small_pack(gate={"name": "nudge", "threshold": 0.5}, context=2048)
    steps = pack.generate(TEXT, max_new_tokens=40, trace=True).record.trace or []
    written = {True: "short", False: "long"}
    assert [step.carried_by for step in steps] == [written[step.fused] for step in steps]
    assert {step.fused for step in steps} == {True, False}


def test_a_member_without_weight_carries_nothing() -> None:
    record = (
        small_pack()
        .generate(TEXT, max_new_tokens=9, trace=True, weights={"long": 1.0, "short": 0.0})
        .record
    )
    assert {step.carried_by for step in record.trace or []} == {"long"}
    assert all(list(piece.loss) == ["long"] for piece in record.prompt_trace or [])


@pytest.mark.parametrize("chat", [False, True])
def test_the_trace_of_a_prompt_adds_up_to_its_losses(chat: bool) -> None:
    pack = small_pack(template=TEMPLATE, context=2048)
    messages = [
        {"role": "system", "content": "the true"},
        {"role": "user", "content": TEXT},
    ]
    record = pack.generate(messages if chat else TEXT, max_new_tokens=2, trace=True).record
    pieces = record.prompt_trace or []
    assert record.prompt_loss is not None
    assert sum(piece.tokens for piece in pieces) == record.scored_tokens > 5
    for name, loss in record.prompt_loss.items():
        total = sum(piece.loss[name] for piece in pieces)
        assert total / record.scored_tokens == pytest.approx(loss)
    ends = [piece.start + len(piece.utf8) for piece in pieces]
    assert all(end <= piece.start for end, piece in zip(ends, pieces[1:], strict=False))
    assert all(bytes(piece.utf8).decode(errors="replace") == piece.text for piece in pieces)
    written = b"\0".join(m["content"].encode() for m in messages) if chat else TEXT.encode()
    for piece in pieces:
        assert bytes(piece.utf8) == written[piece.start : piece.start + len(piece.utf8)]


def test_prompts_are_traced_only_if_asked_and_read_again_from_the_cache() -> None:
    pack = small_pack(context=2048, prefix_cache=2**24)
    assert pack.generate(TEXT, max_new_tokens=2).record.prompt_trace is None

    def traced() -> Answer:
        found: Answer = pack.generate(TEXT, max_new_tokens=2, trace=True)
        return found

    first, again = traced().record, traced().record
    assert again.usage.cached_tokens > 0
    assert again.prompt_trace == first.prompt_trace
    assert small_pack().generate("he", max_new_tokens=1, trace=True).record.prompt_trace in (
        None,
        [],
    )


@pytest.mark.parametrize("draft", [{"name": "lookup", "min_match": 1}, "reference", "members"])
@pytest.mark.parametrize("seed", [None, 3])
def test_which_tokens_were_drafted(draft: Any, seed: int | None) -> None:
    pack = small_pack(context=2048, draft=draft)
    settings: dict[str, Any] = {} if seed is None else {"seed": seed, "do_sample": True}
    settings |= {"max_new_tokens": 40, "min_new_tokens": 40, "trace": True}
    chunks = list(pack.stream(TEXT, **settings))
    record = chunks[-1].record
    assert record is not None
    assert record.drafts is not None
    flags = [step.drafted for step in record.trace or []]
    assert sum(flags) == record.drafts.accepted
    assert record.drafts.accepted > 0 or isinstance(draft, dict)  # looked up tokens are few
    # Each pass adds the accepted tokens, and then one that was not drafted.
    passes = flags.count(False)
    assert passes >= record.drafts.rounds
    assert [step.drafted for chunk in chunks for step in chunk.trace] == flags
    alone = pack.generate(TEXT, draft=None, **settings).record.trace or []
    assert [step.drafted for step in alone] == [False] * 40
