"""`Pack.weigh`: the same weights that generation would use, for every weighting at once."""

from __future__ import annotations

import pytest

from packfuse import Pack, Weighing
from packfuse.errors import ConfigError, PromptError
from packfuse.weighting.methods import weightings
from tests.support import pico

TEXT = "The capital of France is Paris, and that of Italy is Rome."
READY = ["exact", "opt", "sim", "top1", "uniform"]


@pytest.fixture(scope="module")
def pack() -> Pack:
    """Two models with different tokenizers."""
    pairs = [pico.tiny_pair("mistral"), pico.tiny_pair("tekken", seed=1)]
    return Pack.from_pretrained(pairs, progress=False)


@pytest.mark.parametrize("fusion", ["packllm", "mixture"])
@pytest.mark.parametrize(
    "prompt", [TEXT, [{"role": "user", "content": TEXT}]], ids=["text", "chat"]
)
def test_it_has_the_weights_that_generation_uses(pack: Pack, prompt, fusion: str):
    found = pack.weigh(prompt, fusion=fusion)
    assert list(found.weights) == READY
    for name, weights in found.weights.items():
        record = pack.generate(prompt, weighting=name, fusion=fusion, max_new_tokens=1).record
        assert weights == pytest.approx(record.weights, abs=1e-9)
        assert found.prompt_loss == pytest.approx(record.prompt_loss)
        assert found.bits_per_byte == pytest.approx(record.bits_per_byte)
        assert (found.reference, found.scored_tokens, found.notes, found.fusion) == (
            record.reference,
            record.scored_tokens,
            record.notes,
            record.fusion,
        )


def test_weightings_can_be_given_with_parameters_and_other_losses(pack: Pack):
    own = {"name": "sim", "normalize": "own", "tau": 0.5}
    first, second = pack.names
    found = pack.weigh(TEXT, ["sim", own, {"name": "fixed", "weights": {second: 1.0}}]).weights
    assert list(found) == ["sim", "sim-2", "fixed"]
    assert found["fixed"] == {first: 0, second: 1}
    for label, weighting in (("sim", "sim"), ("sim-2", own)):
        alone = pack.generate(TEXT, weighting=weighting, max_new_tokens=1).record.weights
        assert found[label] == pytest.approx(alone, abs=1e-9)
    assert found["sim"] != pytest.approx(found["sim-2"], abs=1e-3)


def test_weights_of_every_weighting_that_needs_no_parameters_sum_to_one(pack: Pack):
    found = pack.weigh("x")
    assert set(found.weights) == set(weightings().parts) - {"fixed", "calibrated"}
    assert all(sum(weights.values()) == pytest.approx(1) for weights in found.weights.values())
    assert Weighing.model_validate_json(found.model_dump_json()) == found


def test_it_does_not_change_the_pack(pack: Pack):
    before = pack.generate(TEXT, max_new_tokens=8)
    pack.weigh(TEXT, fusion="mixture")
    after = pack.generate(TEXT, max_new_tokens=8)
    assert (after.text, after.record.weights) == (before.text, before.record.weights)


def test_the_member_of_a_pack_of_one_has_all_the_weight():
    alone = Pack.from_pretrained([pico.tiny_pair("mistral")], progress=False)
    found = alone.weigh(TEXT)
    assert all(list(weights.values()) == [1.0] for weights in found.weights.values())


def test_bad_requests_are_errors(pack: Pack):
    with pytest.raises(PromptError, match="empty"):
        pack.weigh("")
    with pytest.raises(ConfigError, match="one prompt"):
        pack.weigh(["a", "b"])
    with pytest.raises(ConfigError, match=r"unknown weighting 'simm'.*did you mean 'sim'"):
        pack.weigh("a", ["simm"])
    with pytest.raises(ConfigError, match=r"no weighting.*known: calibrated, exact"):
        pack.weigh("a", [])
