"""What is collected of answers, against whole distributions and `Pack.score`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from packfuse.evaluation import Setting
from packfuse.evaluation.calibration.answers import TOP, AnswerScores, collect, compress
from packfuse.evaluation.calibration.fit import Calibration, answer_logps
from packfuse.evaluation.systems.choice import under
from packfuse.evaluation.systems.scored import ScoringSystem
from packfuse.fusion.rules.pools import geometric
from packfuse.pack import Pack
from packfuse.weighting.methods.fixed import Fixed
from tests.support import small

PROMPT = 'She said hello to the others, and: "the'
ANSWERS = (" true hello", " long 日本", "\n")


def collected(pack: Pack, reference: int = 0) -> AnswerScores:
    setting = Setting.of(pack)
    system = ScoringSystem(pack, {setting.label: setting})
    return collect(system, reference, PROMPT, ANSWERS)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9999),
    spread=st.sampled_from([0.5, 2.0, 6.0]),
    powers=st.lists(st.floats(0, 1.5), min_size=2, max_size=2).filter(lambda p: sum(p) > 0.3),
)
def test_any_pool_is_normalized_by_the_candidates(
    seed: int, spread: float, powers: list[float]
) -> None:
    """Over 64 draws the mean of the normalizer is that of the whole vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1500, generator=generator) * spread
    logits += torch.randn(1500, generator=generator) * spread
    logps = logits.log_softmax(-1)
    label = int(torch.randint(1500, (1,), generator=generator))
    theta = np.array(powers)
    whole = float((torch.from_numpy(theta).float() @ logps).exp().sum())
    found = []
    for draw in range(64):
        kept, counts, at = compress(logps, label, draw)
        assert kept[:, at] == pytest.approx(logps[:, label].tolist())
        found.append(np.exp(counts + theta @ kept).sum())
    error = np.std(found) / 8
    assert np.mean(found) == pytest.approx(whole, abs=5 * error + 1e-4 * whole)


def test_small_vocabularies_are_kept_whole() -> None:
    logps = torch.randn(3, TOP, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    kept, counts, label = compress(logps, 7)
    assert kept.tolist() == [pytest.approx(row) for row in logps.tolist()]
    assert counts.tolist() == [0.0] * TOP
    assert label == 7


def test_answers_are_scored_as_the_pack_scores_them() -> None:
    for index, reference in enumerate(("long", "short")):
        pack = small.small_pack(reference=reference)
        found = collected(pack, index)
        expected = [pack.score(PROMPT, answer) for answer in ANSWERS]
        assert found.logp.tolist() == pytest.approx(expected, abs=2e-4)
        assert answer_logps(found, Calibration.none(2)).tolist() == pytest.approx(
            expected, abs=0.05
        )
        assert found.sizes == [len(answer.encode()) for answer in ANSWERS]


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, 0.7)])
def test_other_weights_are_predicted_without_reading_again(weights: tuple[float, float]) -> None:
    pack = small.small_pack()
    found = collected(pack)
    calibration = Calibration(np.ones(2), 0.0, np.array(weights))
    setting = replace(Setting.of(pack), weighting=Fixed(weights=weights))
    single = under(pack, setting)
    expected = [single.score(PROMPT, answer) for answer in ANSWERS]
    assert answer_logps(found, calibration).tolist() == pytest.approx(expected, abs=0.1)


def test_temperatures_and_sharpness_are_predicted_too() -> None:
    """The weighting that a calibration becomes gives the pack what was predicted."""
    pack = small.small_pack()
    calibration = Calibration(np.array([1.5, 0.8]), 0.4, np.array([0.5, 0.3]))
    own = Setting.of(pack).weighting
    tuned = Pack(
        pack.members,
        progress=False,
        reference="long",
        weighting=calibration.weighting(pack.names, own, 20),  # type: ignore[arg-type]
    )
    expected = [tuned.score(PROMPT, answer) for answer in ANSWERS]
    found = answer_logps(collected(pack), calibration)
    assert found.tolist() == pytest.approx(expected, abs=0.1)
    plain = [pack.score(PROMPT, answer) for answer in ANSWERS]
    assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.3


def test_they_can_be_written_down() -> None:
    found = collected(small.small_pack())
    again = AnswerScores.load(json.loads(json.dumps(found.dump())))
    for calibration in (Calibration.none(2), Calibration.alone(1, 2)):
        one, other = (answer_logps(scores, calibration) for scores in (found, again))
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-4)
    assert again.sizes == found.sizes
    assert again.reference == found.reference


def test_one_answer_can_be_taken() -> None:
    found = collected(small.small_pack())
    whole = answer_logps(found, Calibration.none(2))
    for index in range(len(ANSWERS)):
        alone = answer_logps(found.of_answer(index), Calibration.none(2))
        assert alone[index] == pytest.approx(whole[index])
        assert math.isclose(alone.sum(), whole[index])


def test_impossible_tokens_have_the_floor() -> None:
    logps = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    kept, _, label = compress(logps, 2)
    assert kept[0, label] == -60
    pooled = geometric(logps[:, None], torch.tensor([[0.5, 0.5]]))[0]
    z = 0.5 * kept.sum(0)
    assert (z - np.log(np.exp(z).sum()))[:2].tolist() == pytest.approx(pooled[:2].tolist())
