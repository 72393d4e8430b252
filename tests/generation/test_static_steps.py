"""Packs whose members decode over static stores answer as packs whose steps are eager."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from packfuse import Pack
from packfuse.hf_compat.models import output_cache
from packfuse.models.hf_member import HFMember
from packfuse.models.kv import static_store
from packfuse.models.kv.static_step import StaticStep
from packfuse.models.static_member import StaticMember
from tests.support import fusing, pico
from tests.support.quick import quick
from tests.support.small import small_pack
from tests.support.steps import at_once

PROMPTS = ["the hello he", "lo {", "日本 hello the the"]


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every step that is taken; stores are small, so that rows outgrow them."""
    monkeypatch.setattr(static_store, "FIRST_SLOTS", 16)
    monkeypatch.setattr(static_store, "HEADROOM", 4)
    taken: list[int] = []
    run = StaticStep.__call__

    def note(step: StaticStep, *args: Any) -> Any:
        taken.append(step.rows)
        return run(step, *args)

    monkeypatch.setattr(StaticStep, "__call__", note)
    return taken


def both(**settings: Any) -> tuple[Pack, Pack]:
    """The same members with static steps, and with eager ones."""
    static, eager = (small_pack(steps=steps, **settings) for steps in ("static", "eager"))
    assert all(isinstance(member, StaticMember) for member in static.members)
    assert not any(isinstance(member, StaticMember) for member in eager.members)
    return static, eager


def same(one: Any, other: Any) -> None:
    """Whether answers are the same, token for token, and so are their records."""
    pairs = zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]
    for mine, theirs in pairs:
        if isinstance(mine, list):
            same(mine, theirs)
            continue
        assert mine.token_ids == theirs.token_ids
        assert mine.record.agreed == theirs.record.agreed
        assert mine.record.weights == pytest.approx(theirs.record.weights, abs=1e-4)


@pytest.mark.parametrize(
    "setting",
    [{}, {"draft": "members"}, {"draft": "lookup"}, {"draft": "auto", "heads": "pruned"},
     {"fusion": "unite"}, {"gate": "safe", "draft": "reference"}, {"alignment": "prefix"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "arguments",
    quick([{"num_beams": 3}, {}, {"do_sample": True, "seed": 3}, {"stop": ["e"]}], 2),
    ids=str,
)
def test_answers_are_the_same(
    setting: dict[str, Any], arguments: dict[str, Any], steps: list[int]
) -> None:
    """One prompt, several, and one again: greedy, sampled, with beams, with drafts."""
    static, eager = both(**setting)
    for prompt in (PROMPTS[0], PROMPTS, PROMPTS[2]):
        found, expected = (
            pack.generate(prompt, max_new_tokens=24, **arguments) for pack in (static, eager)
        )
        same(found, expected)
    assert steps


def test_several_answers_to_a_prompt_and_its_prefix(steps: list[int]) -> None:
    """Forks of one prompt, and prompts that begin alike: the prefix cache keeps no static store."""
    static, eager = both(prefix_cache=10**7)
    for prompt in (PROMPTS[2], PROMPTS[2] + " he", PROMPTS[2]):
        found, expected = (
            pack.generate(prompt, max_new_tokens=10, do_sample=True, seed=5, num_return_sequences=3)
            for pack in (static, eager)
        )
        same(found, expected)
    assert 4 in steps


def test_calls_that_come_together_share_steps(steps: list[int]) -> None:
    static, eager = both()
    calls = [
        partial(pack.generate, prompt, max_new_tokens=6 + 5 * at)
        for pack in (static, eager)
        for at, prompt in enumerate(PROMPTS)
    ]
    together = at_once(static, calls[:3])
    assert 4 in steps
    same(together, [call() for call in calls[3:]])


def test_answers_end_with_the_context_window() -> None:
    static, eager = both(context=40)
    found, expected = (pack.generate(PROMPTS[0], max_new_tokens=200) for pack in (static, eager))
    same(found, expected)
    assert found.record.finish_reason == expected.record.finish_reason


def test_a_pack_of_one_is_its_model(steps: list[int]) -> None:
    model, tokenizer = pico.tiny_pair("mistral", "gemma3")
    member = HFMember("one", model, fusing.vocabulary("mistral"))
    pack = Pack([member], steps="static", progress=False)
    ids = tokenizer("The capital of France", return_tensors="pt").input_ids
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    answer = pack.generate("The capital of France", max_new_tokens=20)
    assert answer.token_ids == tuple(expected.tolist())
    assert steps


def test_copies_of_one_member_are_that_member() -> None:
    members = [fusing.member("mistral", seed=0), fusing.member("mistral", seed=0).renamed("two")]
    two = Pack(members, steps="static", weighting="uniform", progress=False)
    one = Pack(members[:1], steps="static", progress=False)
    prompt = "def add(a, b):"
    assert (
        two.generate(prompt, max_new_tokens=16).token_ids
        == one.generate(prompt, max_new_tokens=16).token_ids
    )


def test_cached_and_uncached_forward_passes_agree() -> None:
    static, _ = both(weighting="uniform")
    model = static.model
    ids = static.tokenizer(PROMPTS[2], return_tensors="pt").input_ids
    whole = model(ids).logits[0]
    cache = output_cache(model(ids[:, :2]))
    for at in range(2, ids.shape[1]):
        found = model(ids[:, at : at + 1], past_key_values=cache).logits[0, -1]
        assert torch.allclose(found.exp(), whole[at].exp(), atol=1e-4)


def test_records_and_packs_say_which_members_are_eager() -> None:
    model, _ = pico.tiny_pair("mistral", "lfm2")
    members = [
        fusing.member("mistral"),
        HFMember("recurrent", model, fusing.vocabulary("mistral")),
    ]
    pack = Pack(members, steps="static", weighting="uniform", progress=False)
    answer = pack.generate("Hello", max_new_tokens=3)
    assert list(answer.record.eager_members) == ["recurrent"]
    assert "layers of the kind" in answer.record.eager_members["recurrent"]
    usual = Pack(members, weighting="uniform", progress=False)
    assert usual.generate("Hello", max_new_tokens=3).record.eager_members == {}


def test_a_member_of_a_static_pack_is_eager_in_another() -> None:
    static, _ = both()
    eager = Pack(static.members, steps="eager", progress=False)
    assert not any(isinstance(member, StaticMember) for member in eager.members)
    again = Pack(static.members, steps="static", progress=False)
    members: list[Any] = [*static.members, *again.members]
    stores = [member._stores for member in members]
    assert len({id(one) for one in stores}) == 4
