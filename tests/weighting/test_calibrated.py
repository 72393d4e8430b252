"""`calibrated`: its laws, its formula by hand, and packs that have it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packfuse import Pack, PackConfig
from packfuse.errors import ConfigError, WeightsError
from packfuse.fusion.rules.packllm import PackLLM
from packfuse.fusion.rules.sharpening import Sharpening
from packfuse.testing import WeightingLaws
from packfuse.weighting.methods import weightings
from packfuse.weighting.methods.base import Evidence, Weights
from packfuse.weighting.methods.calibrated import Calibrated, MemberCalibration
from packfuse.weighting.methods.exact import Exact
from tests.support import small
from tests.support.evidences import random_evidence

PROMPT = 'She said hello to the others, and: "the'


def calibrated(*members: tuple[float, float], names: Any = None, **fields: Any) -> Calibrated:
    """Priors and temperatures of members that are called member 0, member 1, ..."""
    names = names or [f"member {k}" for k in range(len(members))]
    return Calibrated(
        members={
            name: MemberCalibration(prior=prior, temperature=temperature)
            for name, (prior, temperature) in zip(names, members, strict=True)
        },
        **fields,
    )


THREE = ((0.5, 1.2), (0.2, 0.8), (0.3, 2.0))


@pytest.mark.parametrize("law", [name for name in dir(WeightingLaws) if name[:5] == "test_"])
@pytest.mark.parametrize("trust", [0.0, 0.4, 1.0])
def test_it_satisfies_the_laws(law: str, trust: float) -> None:
    class Laws(WeightingLaws):
        part = calibrated(*THREE, sharpness=1.3, trust=trust)

        def weights(self, evidence: Evidence, pool: str) -> Weights:
            # A calibration is of a number of members, and a pack of one has its own.
            single = calibrated((1.0, 3.0), trust=trust)
            self.part = self.part if evidence.members == len(THREE) else single
            return super().weights(evidence, pool)

    getattr(Laws(), law)()


def test_with_temperatures_of_one_and_full_trust_it_is_exact() -> None:
    for seed in range(3):
        evidence = random_evidence(seed)
        for pool in ("logit", "linear"):
            same = calibrated((0.1, 1), (0.9, 1), shrinkage=8).fit(evidence, pool)
            assert same.tolist() == pytest.approx(Exact(shrinkage=8).fit(evidence, pool).tolist())
    assert calibrated((0.1, 1), (0.9, 1)).sharpening is None


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    temperatures=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    sharpness=st.floats(0.2, 3),
    trust=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_the_pool_is_the_one_of_the_formula(
    shares: list[float], temperatures: list[float], sharpness: float, trust: float, seed: int
) -> None:
    """`softmax(s · Σ w_k log p_k / T_k)`, token by token, against weights, rule and power."""
    priors = [share / sum(shares) for share in shares]
    weighting = calibrated(
        *zip(priors, temperatures, strict=True), sharpness=sharpness, trust=trust
    )
    evidence = random_evidence(seed, members=3)
    own = Exact().fit(evidence, "logit")
    mixed = [trust * w + (1 - trust) * p for w, p in zip(own, priors, strict=True)]
    logps = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)).double()
    logps = logps.log_softmax(-1)
    scores = [
        sharpness
        * sum(
            w * float(member[c]) / t
            for w, t, member in zip(mixed, temperatures, logps, strict=True)
        )
        for c in range(7)
    ]
    total = math.log(sum(map(math.exp, scores)))
    weights = torch.from_numpy(weighting.fit(evidence, "logit"))[None]
    fused = PackLLM().fuse(logps[:, None], weights)
    sharpening = weighting.sharpening
    assert sharpening
    found = sharpening.apply(fused, weights)[0]
    assert found.tolist() == pytest.approx([score - total for score in scores], abs=1e-6)


def test_impossible_tokens_stay_impossible() -> None:
    sharpening = Sharpening((2.0, 1.0), 0.5)
    rows = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]).log()
    found = sharpening.apply(rows, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    power = 0.25
    expected = [p**power / (0.25**power + 0.75**power) for p in (0.25, 0.75)]
    assert found[0].exp().tolist() == pytest.approx([*expected, 0.0])
    assert found[1].tolist() == [-math.inf] * 3


def test_without_trust_the_prompt_does_not_count() -> None:
    weighting = calibrated((0.6, 2.0), (0.4, 1.0), trust=0)
    given_ = weighting.for_members(["member 0", "member 1"])
    assert given_ is not None
    assert given_.tolist() == pytest.approx([0.3 / 0.7, 0.4 / 0.7])
    assert calibrated((0.6, 1), (0.4, 1)).for_members(["member 0", "member 1"]) is None


@pytest.mark.parametrize(
    "names", [["member 1", "member 0"], ["member 0"], ["member 0", "other"], ["a", "b", "c"]]
)
def test_it_is_of_its_members_in_their_order(names: list[str]) -> None:
    with pytest.raises(WeightsError, match=r"the calibration is of member 0, member 1; the pack"):
        calibrated((0.6, 1), (0.4, 1)).for_members(names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "members: Field required"),
        ({"members": {}}, "members"),
        ({"members": {"a": {"prior": 0.5}, "b": {"prior": 0.4}}}, "the priors sum to 0.9, not to"),
        ({"members": {"a": {"prior": -1}, "b": {"prior": 2}}}, "members.a.prior"),
        ({"members": {"a": {"prior": 1, "temperature": 0}}}, "members.a.temperature"),
        ({"members": {"a": {"prior": 1, "temprature": 1}}}, "members.a.temprature"),
        ({"members": {"a": {"prior": 1}}, "sharpness": 0}, "sharpness"),
        ({"members": {"a": {"prior": 1}}, "trust": 1.5}, "trust"),
    ],
)
def test_what_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weightings().make({"name": "calibrated", **fields})


# --- in packs

NAMES = ["long", "short"]
FITTED = calibrated((0.7, 1.3), (0.3, 0.8), names=NAMES, sharpness=1.2, trust=0.5, questions=40)
CONSTANT = calibrated((0.7, 1.3), (0.3, 0.8), names=NAMES, sharpness=1.2, trust=0)


def test_a_pack_of_other_members_is_refused() -> None:
    with pytest.raises(WeightsError, match="run packfuse determine"):
        small.small_pack(weighting=calibrated((1.0, 1.0)))


def test_the_record_and_the_weights_have_its_sharpness() -> None:
    pack = small.small_pack(weighting=FITTED)
    record = pack.generate(PROMPT, max_new_tokens=2).record
    weights = record.weights
    assert sum(weights.values()) == pytest.approx(1)
    expected = 1.2 / (weights["long"] * 1.3 + weights["short"] * 0.8)
    assert record.sharpness == pytest.approx(expected)
    assert record.weighting == weightings().dump(FITTED)
    assert small.small_pack().generate(PROMPT, max_new_tokens=1).record.sharpness is None
    weighed = pack.weigh(PROMPT)
    assert weighed.weights["calibrated"] == pytest.approx(weights)
    assert weighed.sharpness == {"calibrated": pytest.approx(expected)}
    own = weighed.weights["exact"]
    tempered = [(0.5 * own["long"] + 0.35) / 1.3, (0.5 * own["short"] + 0.15) / 0.8]
    assert weights["long"] == pytest.approx(tempered[0] / sum(tempered))
    assert record.prompt_share == pytest.approx(weighed.prompt_share["exact"] / 2)


def test_steps_are_raised_to_the_power_of_fixed_weights() -> None:
    """The same weights without a power, whose distributions are then raised by hand."""
    weights = [0.7 / 1.3, 0.3 / 0.8]
    plain = {name: w / sum(weights) for name, w in zip(NAMES, weights, strict=True)}
    power = 1.2 / (plain["long"] * 1.3 + plain["short"] * 0.8)
    pack = small.small_pack()
    arguments: dict[str, Any] = {"max_new_tokens": 6, "trace": True, "top_logprobs": 400}
    sharp = pack.generate(PROMPT, weighting=CONSTANT, **arguments)
    flat = pack.generate(PROMPT, weights=plain, **arguments)
    assert sharp.text == flat.text  # greedy: a power moves no maximum
    assert sharp.record.weights == pytest.approx(plain)
    assert sharp.record.trace
    assert flat.record.trace
    for one, other in zip(sharp.record.trace, flat.record.trace, strict=True):
        total = np.logaddexp.reduce([power * a.logprob for a in other.alternatives])
        assert one.logprob == pytest.approx(power * other.logprob - total, abs=1e-4)


def test_an_empty_prompt_has_the_prior_and_equal_weights() -> None:
    """No token of the prompt can be scored: half is the prior, half is equal."""
    record = small.small_pack(weighting=FITTED).generate("h", max_new_tokens=1).record
    if record.scored_tokens:
        pytest.fail("take another prompt: this one has tokens that are scored")
    tempered = [(0.25 + 0.35) / 1.3, (0.25 + 0.15) / 0.8]
    assert record.weights["long"] == pytest.approx(tempered[0] / sum(tempered))


def test_members_without_a_prior_are_not_read_if_no_prompt_counts() -> None:
    only = calibrated((0.0, 1.0), (1.0, 1.0), names=NAMES, trust=0)
    pack = small.small_pack(weighting=only, reference="auto")
    alone = Pack([pack.members[1]], progress=False)
    assert (
        pack.generate(PROMPT, max_new_tokens=8).text
        == alone.generate(PROMPT, max_new_tokens=8).text
    )
    record = pack.generate(PROMPT, max_new_tokens=1).record
    assert record.reference == "short"
    assert record.usage.prompt_tokens_by_member["long"] == 0


def test_a_file_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "pack.yaml"
    config = PackConfig.check({"members": ["a", "b"], "weighting": FITTED})
    config.write(path)
    assert "prior: 0.7" in path.read_text()
    again = weightings().make(PackConfig.read(path).weighting)
    assert again == FITTED
    assert list(again.members) == NAMES


def test_it_is_part_of_the_fingerprint() -> None:
    packs = [small.small_pack(weighting=w) for w in (FITTED, CONSTANT, "exact")]
    assert len({str(pack.identity) for pack in packs}) == 3
