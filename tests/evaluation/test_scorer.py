"""Many settings in one forward pass, against `Pack.score` of each and models run by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from packfuse import Pack
from packfuse.alignment import alignments
from packfuse.errors import ConfigError, PromptError
from packfuse.evaluation import Setting, every_method, grid
from packfuse.evaluation.multi_fusion import IMPOSSIBLE, FusedTokens, total
from packfuse.evaluation.scorer import Method, Scorer
from packfuse.evaluation.systems.choice import alone, under
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.gates.safe import Safe
from packfuse.fusion.rules import rules
from packfuse.fusion.rules.unite import UniTE
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.calibrated import Calibrated, MemberCalibration
from packfuse.weighting.methods.fixed import Fixed
from tests.support import packs, small

CONTEXT = 'She said hello to the others, and: "the'
TEXTS = (" true hello", " long 日本", "\n")
EXACT = 2e-4
"""Largest difference in nats of one text; both sides read the same text in other chunks."""

GATES = (Safe(),)
CALIBRATED = Calibrated(
    members={
        "long": MemberCalibration(prior=0.7, temperature=1.3),
        "short": MemberCalibration(prior=0.3, temperature=0.8),
    },
    sharpness=1.2,
    trust=0.5,
)


def fixed(own: Setting, *weights: float) -> Setting:
    return replace(own, weighting=Fixed(weights=weights))


@pytest.mark.parametrize("reference", ["long", "short", "auto"])
@pytest.mark.parametrize("alignment", sorted(alignments().parts))
def test_all_settings_in_one_reading_equal_each_alone(alignment: str, reference: str) -> None:
    pack = small.small_pack()
    own = replace(Setting.of(pack), alignment=alignments().make(alignment), reference=reference)
    chosen = [*every_method(own), *grid(own, pack.names, 2), fixed(own, 0.3, 0.7)]
    chosen.append(replace(fixed(own, 0.3, 0.7), rule=UniTE(k=2)))
    chosen += [replace(s, gate=gate) for s in (own, fixed(own, 0, 1)) for gate in GATES]
    chosen.append(replace(own, weighting=CALIBRATED))
    chosen.append(replace(own, weighting=CALIBRATED.model_copy(update={"trust": 0})))
    named = {"fixed", "calibrated"}  # those that need parameters
    tuned = replace(own, weighting=CALIBRATED)
    assert every_method(tuned) == [*every_method(own), tuned]
    assert len(every_method(own)) == len(rules().parts) * len(weightings().parts.keys() - named)
    scored = ScoringSystem(pack, {setting.label: setting for setting in chosen})
    prompts = scored.scored_prompts(CONTEXT, TEXTS)
    for setting in chosen:
        found = prompts.under(setting).scores
        at = scored._at[setting.label]
        single = under(pack, setting)
        for column, text in enumerate(TEXTS):
            if not found.impossible[at, column]:
                expected = single.score(CONTEXT, text)
                assert found.logps[at, column] == pytest.approx(expected, abs=EXACT), setting.label
            else:
                assert single.score(CONTEXT, text) == -math.inf


def test_real_vocabularies_agree_as_well() -> None:
    members = [packs.tiny_member("mistral"), small.small_pack().members[0]]
    pack = packs.tiny_pack(members, reference="mistral")
    chosen = [Setting.parse(text, pack) for text in ("", "mixture/sim", "unite/opt//long")]
    scored = ScoringSystem(pack, {setting.label: setting for setting in chosen})
    prompts = scored.scored_prompts("The capital of France is ", ["Paris", "Roma, naturally"])
    for setting in chosen:
        found = prompts.under(setting).scores
        single = under(pack, setting)
        for column, text in enumerate(("Paris", "Roma, naturally")):
            expected = single.score("The capital of France is ", text)
            if not found.impossible[scored._at[setting.label], column]:
                logp = found.logps[scored._at[setting.label], column]
                assert logp == pytest.approx(expected, abs=EXACT)


def test_a_second_question_is_not_touched_by_the_first() -> None:
    pack = small.small_pack()
    chosen = {setting.label: setting for setting in every_method(Setting.of(pack))}
    one, two = ScoringSystem(pack, chosen), ScoringSystem(pack, chosen)
    first = one.scored_prompts("Another thing: ", ["hello"]).under(Setting.of(pack)).scores
    after = one.scored_prompts(CONTEXT, TEXTS).under(Setting.of(pack)).scores
    alone_ = two.scored_prompts(CONTEXT, TEXTS).under(Setting.of(pack)).scores
    assert np.array_equal(after.logps, alone_.logps)
    assert np.array_equal(after.weights, alone_.weights)
    assert not np.allclose(first.logps[:, 0], after.logps[:, 0])


def by_hand(pack: Pack, head: Sequence[int], new: Sequence[int]) -> tuple[float, list[int]]:
    """Log-probability of ids after others by the bare model, and the likeliest ids there."""
    (member,) = pack.members
    ids = torch.tensor([[*head, *new[:-1]]])
    logits = member.model(ids, use_cache=False).logits[0].detach()[len(head) - 1 :]
    logits[:, member.vocabulary.size :] = -torch.inf
    logps = logits.log_softmax(-1)
    return float(logps.gather(1, torch.tensor(new)[:, None]).sum()), logps.argmax(-1).tolist()


@pytest.mark.parametrize("name", ["deepseek", "mistral"])
def test_one_member_is_the_bare_model(name: str) -> None:
    pack = alone(packs.tiny_member(name, seed=3))
    vocabulary = pack.members[0].vocabulary
    scorer = ScoringSystem(pack, {name: Setting.of(pack)}).scorer(0)
    texts = [" Paris", " 中文 and more", "!"]
    found = scorer.score("The capital of France is", texts)
    head: list[int] = vocabulary.tokenizer("The capital of France is").input_ids
    for column, text in enumerate(texts):
        whole: list[int] = vocabulary.tokenizer("The capital of France is" + text).input_ids
        logp, best = by_hand(pack, head, whole[len(head) :])
        assert found.logps[0, column] == pytest.approx(logp, abs=EXACT)
        assert bool(found.greedy[0, column]) == (best == whole[len(head) :])
        assert found.first[0] == vocabulary.decode(best[:1])
    assert found.weights.tolist() == [[1.0]]
    assert found.sizes == [len(text.encode()) for text in texts]
    assert found.exact == [True] * 3
    assert found.fit.losses is not None  # the prompt is scored, for members alone as well


def test_what_greedy_decoding_writes_is_greedy_and_nothing_else() -> None:
    pack = alone(small.small_pack().members[0])
    vocabulary = pack.members[0].vocabulary
    head = vocabulary.encode(CONTEXT)
    written: list[int] = []
    for _ in range(4):
        _, best = by_hand(pack, head, [*written, 0])
        written.append(best[-1])
    scorer = ScoringSystem(pack, {"long": Setting.of(pack)}).scorer(0)
    for end in range(1, 5):
        logps, greedy = scorer.score_ids(head, written[:end])
        assert greedy.tolist() == [True]
        assert logps[0] == pytest.approx(by_hand(pack, head, written[:end])[0], abs=EXACT)
        other = [*written[: end - 1], (written[end - 1] + 1) % 256]
        logps, greedy = scorer.score_ids(head, other)
        assert greedy.tolist() == [False]
        assert logps[0] == pytest.approx(by_hand(pack, head, other)[0], abs=EXACT)


def test_following_ids_is_scoring_their_text() -> None:
    pack = small.small_pack()
    methods = [Method(s.rule, s.weighting, s.gate) for s in every_method(Setting.of(pack))]
    scorer = Scorer(pack.members, 0, pack.runtime.parts.alignment, methods)
    scores = scorer.score(CONTEXT, TEXTS)
    own = scorer.engine.reference
    for column, text in enumerate(TEXTS):
        head, whole = own.encode(CONTEXT), own.encode(CONTEXT + text)
        logps, greedy = scorer.score_ids(head, whole[len(head) :])
        assert logps == pytest.approx(scores.logps[:, column], abs=EXACT)
        assert greedy.tolist() == scores.greedy[:, column].tolist()


def test_a_token_outside_the_union_counts_one_in_a_million() -> None:
    """UniTE with k = 1: only the members' best tokens have a probability."""
    pack = alone(small.small_pack().members[0])
    vocabulary = pack.members[0].vocabulary
    scored = ScoringSystem(pack, {"only": replace(Setting.of(pack), rule=UniTE(k=1))})
    head = vocabulary.encode(CONTEXT)
    _, [best] = by_hand(pack, head, [0])
    never = next(byte for byte in b"xyz" if byte != best)
    _, after = by_hand(pack, [*head, never], [0])
    logps, greedy = scored.scorer(0).score_ids(head, [never, after[0]])
    assert logps[0] == pytest.approx(math.log(1e-6), abs=1e-5)
    assert not greedy[0]
    scores = scored.scorer(0).score(CONTEXT, [chr(never)])
    assert scores.impossible.tolist() == [[1]]
    assert scores.logps[0, 0] == pytest.approx(-13.815511, abs=1e-5)
    assert pytest.approx(-13.815511, abs=1e-5) == IMPOSSIBLE


def test_total_replaces_nothing_but_what_is_impossible() -> None:
    positions = [
        FusedTokens(np.array([[-1.0], [-np.inf]]), np.array([0, 0]), np.array([True, True])),
        FusedTokens(np.array([[-2.0], [-30.0]]), np.array([0, 0]), np.array([True, True])),
    ]
    sums, missing = total(positions)
    assert sums == pytest.approx([-3.0, math.log(1e-6) - 30.0])
    assert missing.tolist() == [0, 1]


def test_settings_of_several_alignments_are_not_scored_together() -> None:
    pack = small.small_pack()
    own = Setting.of(pack)
    mixed = {name: replace(own, alignment=alignments().make(name)) for name in ("bytes", "prefix")}
    with pytest.raises(ConfigError, match="share one alignment"):
        ScoringSystem(pack, mixed)


def test_what_cannot_be_read_is_refused_and_the_next_one_is_not() -> None:
    pack = small.small_pack(context=64)
    scored = ScoringSystem(pack, {"own": Setting.of(pack)})
    expected = scored.scored_prompts("x", ["y"]).under(Setting.of(pack)).scores.logps
    for context, text in (("x" * 70, "y"), ("x" * 60, "y" * 20), ("", "y"), ("hell", "o")):
        with pytest.raises(PromptError):
            scored.scored_prompts(context, [text]).under(Setting.of(pack))
    assert scored.scored_prompts("x", ["y"]).under(Setting.of(pack)).scores.logps.tolist() == (
        expected.tolist()
    )


def test_grids_and_settings_in_words() -> None:
    pack = small.small_pack()
    own = Setting.of(pack)
    pair = list(grid(own, ["a", "b"], 2))
    assert [s.weighting.weights for s in pair if isinstance(s.weighting, Fixed)] == [
        {"a": 1.0, "b": 0.0},
        {"a": 0.5, "b": 0.5},
        {"a": 0.0, "b": 1.0},
    ]
    three = list(grid(own, ["a", "b", "c"], 1))
    assert len(three) == 6
    for setting, (name, share) in zip(three, itertools.product("abc", (0, 1)), strict=True):
        assert isinstance(setting.weighting, Fixed)
        assert isinstance(setting.weighting.weights, dict)
        assert setting.weighting.weights[name] == share
        assert sum(setting.weighting.weights.values()) == 1
    with pytest.raises(ConfigError, match="two members"):
        list(grid(own, ["a"], 4))
    assert Setting.parse("", pack) == own
    assert Setting.parse("unite:k=3///short", pack) == replace(
        own, rule=UniTE(k=3), reference="short"
    )
    assert Setting.parse("unite:k=3", pack).label == "unite(k=3) · exact · bytes · long"
    gated = Setting.parse("////safe", pack)
    assert gated == replace(own, gate=Safe())
    assert gated.label == "packllm · exact · bytes · long · safe"
    assert Setting.of(under(pack, gated)) == gated
    for text in (
        "a/b/c/d/e/f",
        "////nothing",
        "nothing",
        "/nothing",
        "//nothing",
        "///nobody",
        "unite:k=0",
    ):
        with pytest.raises(ConfigError):
            Setting.parse(text, pack)
