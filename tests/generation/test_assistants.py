"""Weights in chats: how well the members answer worked chats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse import Pack
from packfuse.generation import assistants
from packfuse.generation.assistants import skill_of
from packfuse.models.hf_member import HFMember
from packfuse.text.chats.chat_template import render_chat
from packfuse.weighting.methods.base import Evidence, skill_here
from packfuse.weighting.worked_chats import CHATS, Skill, preferences
from tests.support import pico
from tests.support.scripted import TEMPLATE
from tests.support.small import small_pack, vocabulary

CHAT = [{"role": "user", "content": "hello, the lo"}]
PRIOR = 4096


@pytest.fixture(scope="module")
def pack() -> Pack:
    return small_pack(template=TEMPLATE, prefix_cache=0)


def record(pack: Pack, prompt: Any = CHAT, **arguments: Any) -> Any:
    return pack.generate(prompt, max_new_tokens=1, **arguments).record


def alone(member: HFMember, question: str, answer: str) -> tuple[float, float]:
    """The slow twin: log-probabilities of a question and its answer under one model, nats."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    own = member.vocabulary
    ids = render_chat(messages, [own], 0).ids
    # Columns beyond the vocabulary are no tokens.
    logps = member.model(torch.tensor([ids])).logits[0, :, : own.size].log_softmax(-1)
    whole, found, after = own.decode(ids), [], 0
    for text in (question, answer):
        start = whole.index(text.encode(), after)
        after = start + len(text.encode())
        at, total = 0, 0.0
        for number, index in enumerate(ids):
            size = len(own.decode([index]))
            if size and start <= at and at + size <= after:
                total += float(logps[number - 1, index].detach())
            at += size
        found.append(total)
    return found[0], found[1]


def test_skill_is_measured_by_each_member_alone(tmp_path: Path, monkeypatch: Any) -> None:
    own = vocabulary("long", template=TEMPLATE)
    models = [pico.tiny_model(own.tokenizer, seed=seed) for seed in (3, 4)]  # type: ignore[arg-type]
    members = [HFMember(f"m{k}", model, own) for k, model in enumerate(models)]
    pack = Pack(members, progress=False)
    margins, losses = [], np.zeros(2)
    for chat in CHATS:
        right = [alone(member, chat.question, chat.right) for member in members]
        wrong = [alone(member, chat.question, chat.wrong) for member in members]
        margins.append([good - bad for (_, good), (_, bad) in zip(right, wrong, strict=True)])
        losses -= [asked for asked, _ in right]
    found = skill_of(pack.runtime)
    expected, _ = preferences(np.array(margins).T)
    np.testing.assert_allclose(found.weights, expected, atol=1e-4)
    size = sum(len(chat.question.encode()) for chat in CHATS)
    np.testing.assert_allclose(found.usual_losses, losses / size, rtol=1e-4)
    # The same numbers come from the cache folder.
    monkeypatch.setenv("PACKFUSE_CACHE", str(tmp_path))
    monkeypatch.setattr(assistants, "WORTH_KEEPING", -1.0)

    def anew() -> Skill:
        assistants._known.clear()
        return skill_of(Pack(members, progress=False).runtime)

    first, second = anew(), anew()
    (kept,) = tmp_path.glob("skill/*.json")
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    kept.write_text(kept.read_text().replace("[0.", "[0.1", 1))
    assert anew().weights[0] != first.weights[0]
    for damaged in ("", "[1, 2", "[[1], [2], [3]]", '["a"]', "[[NaN, 1], [1, 1], [1, 1]]"):
        kept.write_text(damaged)
        np.testing.assert_array_equal(anew().weights, first.weights)
    kept.write_text("")
    again, twin = (skill_of(Pack(members, progress=False).runtime) for _ in range(2))
    assert again is twin


def test_a_chat_has_the_weights_of_the_question_and_of_the_skill(pack: Pack) -> None:
    found = record(pack)
    skill = skill_of(pack.runtime)
    assert found.skill == pytest.approx(dict(zip(pack.names, skill.weights, strict=True)))
    share = found.scored_tokens / (found.scored_tokens + PRIOR)
    assert found.prompt_share == pytest.approx(share)
    losses = np.array(list(found.prompt_loss.values()))
    size = len(CHAT[0]["content"]) / found.scored_tokens
    strange = losses - skill.usual_losses * size
    excess = np.maximum(strange - strange.min() - 1.25, 0)
    prior = skill.weights * np.exp(-(excess**2) / 2)
    prior /= prior.sum()
    # The question has 4,096 tokens against it: the weights are within its share of the prior.
    for weight, own in zip(found.weights.values(), prior, strict=True):
        assert abs(weight - own) <= share + 1e-9
    weighed = pack.weigh(CHAT)
    assert weighed.skill == pytest.approx(found.skill)
    assert weighed.skill_deviation is not None
    assert weighed.prompt_share["exact"] == pytest.approx(found.prompt_share)
    assert set(weighed.prompt_share) == {"exact", "opt", "sim", "top1"}


def test_a_text_has_none(pack: Pack) -> None:
    found = record(pack, "hello, the lo")
    assert found.skill is None
    assert found.prompt_share == pytest.approx(found.scored_tokens / (found.scored_tokens + 32))
    assert pack.weigh("hello, the lo").skill is None


@pytest.mark.parametrize("own", [{"chat": None}, {"shrinkage": 0.0}, {"chat": 0.0}])
def test_it_can_be_left_out(pack: Pack, own: Mapping[str, Any]) -> None:
    found = record(pack, weighting={"name": "exact", **own})
    assert (found.skill is None) == (own != {"chat": 0.0})
    shrinkage = 32 if own == {"chat": None} else 0
    assert found.prompt_share == pytest.approx(
        found.scored_tokens / (found.scored_tokens + shrinkage)
    )


@pytest.mark.parametrize("name", ["sim", "top1", "uniform"])
def test_other_weightings_do_not_use_it(pack: Pack, name: str) -> None:
    found = record(pack, weighting=name)
    assert found.skill is None
    assert found.prompt_share == (None if name == "uniform" else 1.0)


def test_after_a_change_of_a_member_it_is_measured_anew() -> None:
    own = small_pack(template=TEMPLATE)
    before = record(own).skill
    with torch.no_grad():
        for weight in own.members[0].model.parameters():
            weight.mul_(3)
    after = record(own).skill
    assert after != before
    fresh = Pack(
        [HFMember(m.name, m.model, m.vocabulary) for m in own.members],
        reference="long",
        progress=False,
    )
    assert record(fresh).skill == after


def test_with_an_automatic_reference_the_most_skilled_member_is_the_reference() -> None:
    own = small_pack(template=TEMPLATE, reference="auto")
    found = record(own)
    assert found.skill is not None
    assert found.reference == max(found.skill, key=found.skill.__getitem__)
    assert record(own, suppress_tokens=[5]).reference == own.names[0]


def test_a_window_too_short_for_worked_chats_leaves_the_members_equal() -> None:
    own = small_pack(template=TEMPLATE, context=24)
    found = record(own, [{"role": "user", "content": "he"}])
    assert found.skill == pytest.approx({"long": 0.5, "short": 0.5})


margins = st.integers(1, 4).flatmap(
    lambda members: st.lists(
        st.lists(st.floats(-60, 60), min_size=members, max_size=members), max_size=12
    ).map(lambda rows: np.array(rows).reshape(-1, members).T)
)


@given(table=margins)
def test_preferences_are_the_mean_of_a_posterior(table: Any) -> None:
    weights, deviations = preferences(table)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert (deviations >= 0).all()
    # The slow twin: the same integral, by random weights.
    drawn = np.random.default_rng(0).dirichlet(np.ones(len(table)), 20_000)
    likelihood = np.prod(1 / (1 + np.exp(-(drawn @ table))), 1) if table.size else np.ones(20_000)
    if 1 / (likelihood / likelihood.sum()).max() < 500:
        return  # too few of these weights count
    expected = likelihood @ drawn / likelihood.sum()
    np.testing.assert_allclose(weights, expected, atol=0.06)


def test_members_of_one_skill_have_equal_weights_and_better_ones_more() -> None:
    same = np.tile([3.0, -1.0, 5.0], (3, 1))
    np.testing.assert_allclose(preferences(same)[0], 1 / 3, atol=1e-3)
    few, many, clear = (
        preferences(np.array([[own] * count, [-own] * count]))[0][0]
        for own, count in ((3.0, 1), (3.0, 9), (9.0, 9))
    )
    assert 0.5 < few < many
    assert many > 0.75
    assert clear > 0.7
    odd = preferences(np.array([[np.inf, np.nan], [-np.inf, 1.0]]))[0]
    assert np.isfinite(odd).all()


def test_a_question_that_only_one_member_can_read_is_that_members() -> None:
    usual, skill = np.array([4.0, 4.0]), np.array([0.75, 0.25])

    def here(*losses: float) -> list[float]:
        own = Evidence(np.array(losses), 5, np.zeros((2, 0)), usual_losses=usual)
        return skill_here(skill, own).tolist()

    assert here(4.0, 4.0) == pytest.approx(skill)
    assert here(14.0, 19.0)[0] > 0.99
    assert here(12.0, 4.0)[1] > 0.9
    assert here(np.inf, 4.0)[1] > 0.99
    assert here(4.0, 2.8) == pytest.approx(skill)
    assert here(4.0, 2.0)[0] > 0.65
