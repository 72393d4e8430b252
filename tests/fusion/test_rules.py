"""Fusion rules against simple twins, and the laws that every rule keeps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from packfuse.fusion.rules import rules
from packfuse.fusion.rules.base import Rule
from packfuse.fusion.rules.mixture import Mixture
from packfuse.fusion.rules.packllm import PackLLM
from packfuse.fusion.rules.unite import UniTE
from tests.support import oracles

RULES = [PackLLM(), Mixture(), UniTE(), UniTE(k=1), UniTE(k=2)]
NOTHING = -math.inf

any_rule = st.sampled_from(RULES)
every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


def counts(fewest: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 4), min_size=fewest, max_size=most).filter(any)


@st.composite
def members(draw: st.DrawFn, most: int = 4) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[K, N, V]` without ties, some -inf, and weights `[N, K]`, some 0."""
    k, n, v = draw(st.integers(1, most)), draw(st.integers(1, 3)), draw(st.integers(2, 8))
    nats = st.integers(-300, 0).map(lambda tenths: tenths / 10) | st.just(NOTHING)
    row = st.lists(nats, min_size=v, max_size=v).filter(lambda row: max(row) > NOTHING)
    rows = draw(st.lists(row, min_size=k * n, max_size=k * n))
    # each column has a distinct offset, so that there are no ties
    logits = torch.tensor(rows).view(k, n, v) + torch.arange(v) / 200
    weights = torch.tensor(
        draw(st.lists(counts(k, k), min_size=n, max_size=n)), dtype=torch.float32
    )
    return logits.log_softmax(-1), weights / weights.sum(-1, keepdim=True)


def as_dict(row: Tensor) -> oracles.Distribution:
    return {c: math.exp(s) for c, s in enumerate(row.tolist()) if s > NOTHING}


def twin(rule: Rule, logps: Tensor, weights: Tensor) -> Tensor:
    """The oracle's result at every position, as a tensor."""
    fused = torch.full(logps.shape[1:], NOTHING)
    for n, row in enumerate(weights.tolist()):
        dicts = [as_dict(member[n]) for member in logps]
        if isinstance(rule, UniTE):
            answer = oracles.unite(dicts, row, rule.k)
        else:
            answer = getattr(oracles, rule.name)(dicts, row)
        for token, p in answer.items():
            fused[n, token] = math.log(p)
    return fused


def check_normalized(fused: Tensor) -> None:
    assert not fused.isnan().any()
    torch.testing.assert_close(fused.exp().sum(-1), torch.ones(len(fused)))


@settings(max_examples=300)
@given(rule=any_rule, pack=members())
def test_rule_equals_its_twin(rule: Rule, pack: tuple[Tensor, Tensor]):
    fused = rule.fuse(*pack)
    check_normalized(fused)
    torch.testing.assert_close(fused, twin(rule, *pack), atol=1e-4, rtol=1e-5)


@given(rule=any_rule, pack=members(most=1), weights=counts(1, 4))
def test_copies_of_one_member_are_that_member(
    rule: Rule, pack: tuple[Tensor, Tensor], weights: list[int]
):
    alone = pack[0]
    shares = torch.tensor(weights) / sum(weights)
    fused = rule.fuse(alone.expand(len(weights), -1, -1), shares.expand(alone.shape[1], -1))
    expected = alone[0]
    if isinstance(rule, UniTE):
        kept = expected.topk(min(rule.k, expected.shape[-1])).indices
        inside = torch.zeros_like(expected).scatter(-1, kept, 1) > 0
        expected = expected.masked_fill(~inside, NOTHING).log_softmax(-1)
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)


@given(rule=any_rule, pack=members(), shift=st.floats(-20, 20))
def test_a_constant_added_to_a_row_has_no_effect(
    rule: Rule, pack: tuple[Tensor, Tensor], shift: float
):
    logps, weights = pack
    moved = logps + shift * torch.arange(1, len(logps) + 1).view(-1, 1, 1)
    expected = rule.fuse(logps, weights)
    torch.testing.assert_close(rule.fuse(moved, weights), expected, atol=1e-4, rtol=1e-5)


@given(rule=any_rule, pack=members(), junk=st.sampled_from([math.nan, NOTHING, math.inf]))
def test_a_member_of_weight_zero_has_no_effect(
    rule: Rule, pack: tuple[Tensor, Tensor], junk: float
):
    logps, weights = pack
    more = torch.cat([torch.full_like(logps[:1], junk), logps])
    padded = torch.cat([torch.zeros(len(weights), 1), weights], -1)
    torch.testing.assert_close(rule.fuse(more, padded), rule.fuse(logps, weights))


@given(rule=any_rule, pack=members())
def test_rows_of_a_batch_are_independent(rule: Rule, pack: tuple[Tensor, Tensor]):
    logps, weights = pack
    whole = rule.fuse(logps, weights)
    for n in range(len(weights)):
        alone = rule.fuse(logps[:, n : n + 1], weights[n : n + 1])
        torch.testing.assert_close(alone, whole[n : n + 1])


@given(rule=any_rule, pack=members())
def test_inputs_are_not_changed(rule: Rule, pack: tuple[Tensor, Tensor]):
    before = [tensor.clone() for tensor in pack]
    rule.fuse(*pack)
    assert all(torch.equal(old, new) for old, new in zip(before, pack, strict=True))


@every_rule
def test_a_member_without_any_mass_abstains(rule: Rule):
    other = torch.tensor([[[0.7, 0.2, 0.1]]]).log()
    abstaining = torch.full_like(other, NOTHING)
    weights = torch.tensor([[0.9, 0.1]])
    expected = rule.fuse(other, torch.ones(1, 1))
    torch.testing.assert_close(rule.fuse(torch.cat([abstaining, other]), weights), expected)


@every_rule
def test_if_all_members_abstain_no_token_has_mass(rule: Rule):
    fused = rule.fuse(torch.full((2, 1, 4), NOTHING), torch.full((1, 2), 0.5))
    assert torch.equal(fused, torch.full((1, 4), NOTHING))


@pytest.mark.parametrize("rule", [PackLLM(), Mixture(), UniTE()], ids=repr)
def test_members_without_a_common_token_are_mixed(rule: Rule):
    logps = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]]]).log()
    fused = rule.fuse(logps, torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(fused.exp(), torch.tensor([[0.25, 0.375, 0.375]]))


@every_rule
def test_a_large_vocabulary_stays_exact_in_float32(rule: Rule):
    generator = torch.Generator().manual_seed(0)
    logps = (torch.randn(3, 2, 50_000, generator=generator) * 9).log_softmax(-1)
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    fused = rule.fuse(logps, weights)
    check_normalized(fused)
    expected = rule.fuse(logps.double(), weights.double()).float()
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-5)


def test_a_mixture_keeps_tails_that_underflow_as_float32_probabilities():
    tail = torch.tensor([[[0.0, -200.0]], [[0.0, -300.0]]])
    fused = Mixture().fuse(tail, torch.tensor([[0.5, 0.5]]))
    assert fused[0, 1].item() == pytest.approx(-200 + math.log(0.5), rel=1e-6)


def test_any_weighted_member_can_forbid_a_token_in_a_logit_pool():
    logps = torch.tensor([[[0.5, 0.5, 0.0]], [[0.0, 0.5, 0.5]]]).log()
    fused = PackLLM().fuse(logps, torch.tensor([[0.999, 0.001]]))
    assert torch.equal(fused, torch.tensor([[NOTHING, 0.0, NOTHING]]))


@given(pack=members())
def test_unite_over_everything_is_the_mixture(pack: tuple[Tensor, Tensor]):
    everything = UniTE(k=pack[0].shape[-1])
    expected = Mixture().fuse(*pack)
    torch.testing.assert_close(everything.fuse(*pack), expected, atol=1e-5, rtol=1e-5)


def test_unite_does_not_propose_impossible_tokens():
    """A member with two possible tokens proposes two, not ten."""
    logps = torch.tensor([[[0.6, 0.4, 0.0, 0.0]], [[0.1, 0.2, 0.3, 0.4]]]).log()
    fused = UniTE(k=1).fuse(logps, torch.tensor([[0.5, 0.5]]))
    # union {0, 3}: normalized over it, the first member has (1, 0), the second (0.2, 0.8)
    torch.testing.assert_close(fused.exp(), torch.tensor([[0.6, 0.0, 0.0, 0.4]]))
    narrow = UniTE(k=4).fuse(logps[:1], torch.ones(1, 1))
    assert torch.isneginf(narrow[0, 2:]).all()


def test_every_rule_has_a_source_and_a_pool():
    assert list(rules().parts) == ["mixture", "packllm", "unite"]
    for rule in rules().parts.values():
        assert rule.source
        assert rule.pool in ("logit", "linear")
